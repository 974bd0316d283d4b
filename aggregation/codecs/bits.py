"""Small whole numbers packed into bit planes: bit j of every number, then bit j + 1 of each.

A plane is what `numpy.packbits` makes of a row of booleans, so packing runs at memory speed for
any width and needs no table. Each plane ends on a whole byte; the bits left over are zero.
Numbers of 8 bits are written as bytes, one after another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import UpdateRejected


def plane_bytes(count: int) -> int:
    """Return the length of one plane of that many numbers."""
    return (count + 7) // 8


def packed_bytes(count: int, width: int) -> int:
    """Return the length of that many packed numbers."""
    return count if width == 8 else width * plane_bytes(count)


def pack(numbers: npt.NDArray[Any], width: int) -> bytes:
    """Return the low ``width`` bits of whole numbers >= 0 as bytes."""
    if width == 8:
        return numbers.astype(np.uint8, copy=False).tobytes()
    one = numbers.dtype.type(1)
    planes = [np.packbits(((numbers >> j) & one).astype(bool)) for j in range(width)]
    return b"".join(plane.tobytes() for plane in planes)


def unpack(payload: memoryview, count: int, width: int, dtype: Any) -> npt.NDArray[Any]:
    """Return ``count`` numbers of ``width`` bits in a new array.

    Raises:
        UpdateRejected: a bit is set behind the last number.
    """
    if width == 8:
        return np.frombuffer(payload, np.uint8, count).astype(dtype)
    numbers = np.zeros(count, dtype)
    length = plane_bytes(count)
    for j in range(width):
        plane = unpack_plane(payload[j * length : (j + 1) * length], count)
        numbers |= plane.astype(dtype) << np.array(j, dtype)
    return numbers


def unpack_plane(payload: memoryview, count: int) -> npt.NDArray[np.uint8]:
    """Return ``count`` bits as 0 and 1.

    Raises:
        UpdateRejected: a bit is set behind the last one.
    """
    used = count % 8
    if used and payload[-1] & (0xFF >> used):
        raise UpdateRejected("payload", expected="no bits behind the last value", got="some")
    return np.unpackbits(np.frombuffer(payload, np.uint8), count=count)
