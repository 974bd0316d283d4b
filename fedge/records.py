"""Weights between flat vectors and Flower's ArrayRecord, checked byte by byte."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from fedge.errors import UpdateRejected
from fedge.params import BYTES_PER_PARAMETER, DTYPE_NAME, Layout, Vector, check_names


def to_array_record(layout: Layout, vector: Vector) -> ArrayRecord:
    """Return a Flower record with one array a tensor, named as in the ``state_dict``."""
    return ArrayRecord({name: Array(view) for name, view in layout.views(vector).items()})


def from_array_record(layout: Layout, record: ArrayRecord) -> Vector:
    """Copy a Flower record into a new vector, checking each array's raw bytes first.

    Flower's own ``Array.numpy`` ignores the declared shape and dtype; here header, declaration
    and byte length must all agree with the layout before anything is built.

    Raises:
        UpdateRejected: reason ``names``, ``dtype``, ``shape`` or ``bytes``, with the tensor.
    """
    check_names(layout.names, record.keys())
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        _check_declaration(name, record[name], shape)
    vector = np.empty(layout.size, np.float32)
    for name, view in layout.views(vector).items():
        view[...] = _raw_array(name, record[name], view.shape)
    return vector


def layout_of_record(record: ArrayRecord) -> Layout:
    """Return the layout that a Flower record declares; `from_array_record` checks its bytes."""
    return Layout(tuple(record), tuple(tuple(array.shape) for array in record.values()))


def _check_declaration(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.stype != "numpy.ndarray":
        raise UpdateRejected("dtype", tensor=name, expected="numpy.ndarray", got=array.stype)
    if array.dtype != DTYPE_NAME:
        raise UpdateRejected("dtype", tensor=name, expected=DTYPE_NAME, got=array.dtype)
    if tuple(array.shape) != shape:
        raise UpdateRejected("shape", tensor=name, expected=shape, got=tuple(array.shape))


def _raw_array(name: str, array: Array, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Read the .npy payload without trusting it. Returns a read-only view of its bytes."""
    stream = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise UpdateRejected("bytes", tensor=name, expected=".npy version 1.0", got=version)
        found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UpdateRejected("bytes", tensor=name, expected=".npy header", got="none") from error
    if dtype != np.dtype("<f4"):
        raise UpdateRejected("dtype", tensor=name, expected=DTYPE_NAME, got=dtype)
    if tuple(found) != shape or (fortran and len(shape) > 1):
        raise UpdateRejected("shape", tensor=name, expected=shape, got=found)
    body = len(array.data) - stream.tell()
    expected = math.prod(shape) * BYTES_PER_PARAMETER
    if body != expected:
        raise UpdateRejected("bytes", tensor=name, expected=expected, got=body)
    flat = np.frombuffer(array.data, np.float32, offset=stream.tell())
    return flat.reshape(shape)
