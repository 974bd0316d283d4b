"""Weights as what differs from weights that the other side has: fewer bytes, the same bits.

Both vectors' floats are taken as whole numbers that order as the floats do; their differences,
small numbers first, go byte plane by byte plane through zlib. Nothing is lost: a version is known
by the hash of its weights, and what is decoded must have it.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError
from fedge.params import BYTES_PER_PARAMETER

ENCODING = "order-zlib-1"
_LEVEL = 1  # higher ones take several times as long and save one or two points more
_SIGN = np.uint32(1 << 31)
_Words = npt.NDArray[np.uint32]


def encode_delta(parent: bytes, weights: bytes) -> bytes:
    """Return what `decode_delta` needs besides the parent to give these weights.

    Args:
        parent: little-endian float32.
        weights: as many bytes.
    """
    difference = _ordered(weights) - _ordered(parent)  # modulo 2**32
    signed = difference.view(np.int32)
    folded = (difference << np.uint32(1)) ^ (signed >> 31).view(np.uint32)  # sign into bit 0
    planes = folded.astype("<u4").view(np.uint8).reshape(-1, BYTES_PER_PARAMETER)
    return zlib.compress(np.ascontiguousarray(planes.T).tobytes(), _LEVEL)


def decode_delta(content: bytes, parent: bytes) -> bytes:
    """Return the weights; never more memory is taken than a few times the parent's.

    Raises:
        ModelError: the content is damaged or belongs to weights of another size.
    """
    reader = zlib.decompressobj()
    try:
        plain = reader.decompress(content, len(parent) + 1)
    except zlib.error as error:
        raise ModelError(f"weights: their difference cannot be read: {error}") from error
    if len(plain) != len(parent) or not reader.eof or reader.unused_data:
        raise ModelError("weights: their difference is not of the size of the version before")
    planes = np.frombuffer(plain, np.uint8).reshape(BYTES_PER_PARAMETER, -1)
    folded = np.ascontiguousarray(planes.T).view("<u4").reshape(-1).astype(np.uint32, copy=False)
    difference = (folded >> np.uint32(1)) ^ (np.uint32(0) - (folded & np.uint32(1)))
    return _floats(_ordered(parent) + difference)


def _ordered(content: bytes) -> _Words:
    """Return whole numbers that order as the floats do: negative ones reversed below the rest."""
    bits = np.frombuffer(content, "<u4").astype(np.uint32, copy=False)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _floats(ordered: _Words) -> bytes:
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return bits.astype("<u4", copy=False).tobytes()
