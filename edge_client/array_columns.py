"""Arrays as columns of a database: raw little-endian bytes, dtype, shape and checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import InvalidSample

_STORED: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int64": np.dtype("<i8")}
_BY_KIND = {"f": "float32", "i": "int64", "u": "int64", "b": "int64"}


@dataclass(frozen=True)
class ArrayColumns:
    """One array, ready to be stored.

    Attributes:
        values: dtype, shape (JSON), bytes, CRC-32 of the bytes.
    """

    values: tuple[str, str, bytes, int]

    @property
    def size_bytes(self) -> int:
        """Length of the array's bytes."""
        return len(self.values[2])


def pack(values: npt.ArrayLike, what: str) -> ArrayColumns:
    """Return an array as columns: floats as float32, whole numbers and booleans as int64.

    Args:
        values: the array.
        what: name of the array for the error text.

    Raises:
        InvalidSample: it is not an array of numbers, or one is NaN or infinite as stored.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InvalidSample(f"{what} is not a regular array: {error}") from error
    name = _BY_KIND.get(array.dtype.kind)
    if name is None or array.dtype == np.uint64:  # which int64 cannot hold
        raise InvalidSample(f"{what} must be numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        stored = array.astype(_STORED[name])
    if name == "float32" and not np.isfinite(stored).all():
        raise InvalidSample(f"{what} has NaN or infinite values (as float32)")
    content = stored.tobytes()
    return ArrayColumns((name, json.dumps(array.shape), content, zlib.crc32(content)))


def unpack(columns: Sequence[Any]) -> npt.NDArray[Any] | None:
    """Return the array of dtype, shape, bytes and CRC-32, or None if it is damaged."""
    dtype_name, shape, content, crc = columns
    if zlib.crc32(content) != crc:
        return None
    try:
        flat: npt.NDArray[Any] = np.frombuffer(content, _STORED[dtype_name])
        return flat.reshape(tuple(json.loads(shape)))
    except (KeyError, ValueError, TypeError):
        return None


def empty_rows(dtype_name: str, shape: str, num_rows: int) -> npt.NDArray[Any]:
    """Return room for so many arrays of this dtype and shape, ``[num_rows, ...]``."""
    return np.empty((num_rows, *json.loads(shape)), np.dtype(dtype_name))
