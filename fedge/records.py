"""Weights between flat vectors and Flower's ArrayRecord, checked byte by byte."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from fedge.errors import UpdateRejected
from fedge.params import BYTES_PER_PARAMETER, DTYPE_NAME, Layout, Vector, check_names

_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    r"\{'descr': ?'([^']{1,40})', ?'fortran_order': ?(True|False), ?"
    r"'shape': ?\(([0-9, ]*)\),? ?\}\s*"
)


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
    # Every payload is checked before memory is taken for what the declarations promise.
    arrays = {
        name: _raw_array(name, record[name].data, shape)
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    return layout.flatten(arrays)


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


def _raw_array(name: str, data: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Read an .npy payload without trusting it. Returns a read-only view of its bytes.

    numpy's own reader parses the header as a Python literal; hostile bytes make it raise nearly
    anything, so the header is matched against the one form that numpy writes.
    """
    start = len(_MAGIC) + 2
    if len(data) < start or not data.startswith(_MAGIC):
        raise UpdateRejected("bytes", tensor=name, expected=".npy version 1.0", got="none")
    offset = start + int.from_bytes(data[start - 2 : start], "little")
    header = _HEADER.fullmatch(data[start:offset].decode("latin-1"))
    if header is None or offset > len(data):
        raise UpdateRejected("bytes", tensor=name, expected=".npy header", got="none")
    descr, fortran, dims = header.groups()
    if descr != "<f4":
        raise UpdateRejected("dtype", tensor=name, expected=DTYPE_NAME, got=descr)
    if [dim for dim in dims.replace(" ", "").split(",") if dim] != [str(dim) for dim in shape]:
        raise UpdateRejected("shape", tensor=name, expected=shape, got=f"({dims:.80})")
    body, expected = len(data) - offset, math.prod(shape) * BYTES_PER_PARAMETER
    if body != expected:
        raise UpdateRejected("bytes", tensor=name, expected=expected, got=body)
    flat = np.frombuffer(data, "<f4", offset=offset)
    return flat.reshape(shape, order="F" if fortran == "True" else "C")
