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
_BLOCK = 32 * 1024  # words that are decoded at once: few enough for a processor's cache
_PIECE_BYTES = 64 * 1024  # of what is decompressed; larger ones hold up other threads
_SIGN = np.uint32(1 << 31)
_Words = npt.NDArray[np.uint32]


def encode_delta(parent: bytes, weights: bytes) -> bytes:
    """Return what `decode_delta` needs besides the parent to give these weights.

    Args:
        parent: little-endian float32.
        weights: as many bytes.
    """
    difference = _ordered(_words(weights)) - _ordered(_words(parent))  # modulo 2**32
    signed = difference.view(np.int32)
    folded = (difference << np.uint32(1)) ^ (signed >> 31).view(np.uint32)  # sign into bit 0
    planes = folded.astype("<u4").view(np.uint8).reshape(-1, BYTES_PER_PARAMETER)
    return zlib.compress(np.ascontiguousarray(planes.T).tobytes(), _LEVEL)


def decode_delta(content: bytes, parent: bytes) -> bytes:
    """Return the weights; never more memory is taken than a few times the parent's.

    Raises:
        ModelError: the content is damaged or belongs to weights of another size.
    """
    planes = _decompress(content, len(parent)).reshape(BYTES_PER_PARAMETER, -1)
    before = _words(parent)
    weights = np.empty(len(before), "<u4")
    for start in range(0, len(before), _BLOCK):
        block = slice(start, start + _BLOCK)
        folded = np.ascontiguousarray(planes[:, block].T).view("<u4").reshape(-1)
        folded = folded.astype(np.uint32, copy=False)
        difference = (folded >> np.uint32(1)) ^ (np.uint32(0) - (folded & np.uint32(1)))
        weights[block] = _floats(_ordered(before[block]) + difference)
    return weights.tobytes()


def _decompress(content: bytes, size_bytes: int) -> npt.NDArray[np.uint8]:
    """Return exactly so many bytes, decompressed piece by piece."""
    plain = np.empty(size_bytes, np.uint8)
    reader = zlib.decompressobj()
    filled = 0
    try:
        for start in range(0, len(content), _PIECE_BYTES):
            piece = content[start : start + _PIECE_BYTES]
            part = reader.decompress(piece, size_bytes - filled + 1)
            fitting = part[: size_bytes - filled]
            plain[filled : filled + len(fitting)] = np.frombuffer(fitting, np.uint8)
            filled += len(part)
            if filled > size_bytes:
                break
    except zlib.error as error:
        raise ModelError(f"weights: their difference cannot be read: {error}") from error
    if filled != size_bytes or not reader.eof or reader.unused_data:
        raise ModelError("weights: their difference is not of the size of the version before")
    return plain


def _ordered(bits: _Words) -> _Words:
    """Return whole numbers that order as the floats do: negative ones reversed below the rest."""
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _floats(ordered: _Words) -> _Words:
    return np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)


def _words(content: bytes) -> _Words:
    return np.frombuffer(content, "<u4").astype(np.uint32, copy=False)
