"""Sorted indices in about log2(n / k) + 2 bits each, by Elias-Fano coding.

Each index is cut in two: the low bits are written as they are, the high parts, which never
decrease, in unary: index i sets bit ``high + i`` of a row of ``k + (largest high) + 1`` bits. So
the length depends on n and k alone. At k = n / 100 an index costs 8.6 bits, at n / 20 6.3.

Source: Elias, Efficient Storage and Retrieval by Content and Address of Static Files (1974).
"""

from __future__ import annotations

import numpy as np

from aggregation.codecs.bits import pack, packed_bytes, plane_bytes, unpack, unpack_plane
from aggregation.codecs.coders import Indices
from fedge.errors import UpdateRejected


def low_width(size: int, count: int) -> int:
    """Return how many low bits of an index are written as they are: floor(log2(n / k))."""
    return (size // count).bit_length() - 1


def _num_high_bits(size: int, count: int) -> int:
    return count + ((size - 1) >> low_width(size, count)) + 1


def num_bytes(size: int, count: int) -> int:
    """Return the length of ``count`` written indices below ``size``."""
    if count == 0:
        return 0
    low = packed_bytes(count, low_width(size, count))
    return low + plane_bytes(_num_high_bits(size, count))


def encode(indices: Indices, size: int) -> bytes:
    """Return increasing indices below ``size`` as bytes."""
    count = len(indices)
    if count == 0:
        return b""
    width = low_width(size, count)
    marks = np.zeros(_num_high_bits(size, count), bool)
    marks[(indices >> width) + np.arange(count)] = True
    return pack(indices, width) + np.packbits(marks).tobytes()


def decode(payload: memoryview, size: int, count: int) -> Indices:
    """Return ``count`` increasing indices below ``size``; the length is right already.

    Raises:
        UpdateRejected: they are not as many, not increasing, or not below ``size``.
    """
    if count == 0:
        return np.empty(0, np.int64)
    width = low_width(size, count)
    split = packed_bytes(count, width)
    marks = unpack_plane(payload[split:], _num_high_bits(size, count))
    # Counted first: a hostile row of ones would become eight times as many bytes.
    found = np.count_nonzero(marks)
    if found != count:
        raise UpdateRejected("payload", expected=f"{count} indices", got=found)
    indices: Indices = np.flatnonzero(marks).astype(np.int64, copy=False)
    indices -= np.arange(count)
    indices <<= width
    indices |= unpack(payload[:split], count, width, np.int64)
    if indices[-1] >= size or (indices[1:] <= indices[:-1]).any():
        raise UpdateRejected("payload", expected=f"increasing indices below {size}", got="others")
    return indices
