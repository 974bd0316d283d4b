"""Values quantised in blocks of 4096, each with a scale of its own, rotated before or not.

Payload: the seed of the rotation (8 bytes, only if rotated), one float32 scale a block, then the
codes in bit planes. All that it costs beyond the codes is 32 bits per 4096 values. Rotated, the
tail is filled up with zeros to a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aggregation.codecs import rotation
from aggregation.codecs.bits import pack, packed_bytes, unpack
from aggregation.codecs.coders import Grid, little_endian
from fedge.errors import UpdateRejected
from fedge.params import Vector

BLOCK = rotation.BLOCK
_ROWS = 16
_SEED_BYTES = 8


def tiles(count: int) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """Cut a vector into tiles that fit the cache: yields (blocks, values, shape of the tile)."""
    whole = count // BLOCK
    for first in range(0, whole, _ROWS):
        last = min(first + _ROWS, whole)
        yield slice(first, last), slice(first * BLOCK, last * BLOCK), (last - first, BLOCK)
    if tail := count - whole * BLOCK:
        yield slice(whole, whole + 1), slice(whole * BLOCK, count), (1, tail)


def largest_scale(largest_level: int) -> np.float32:
    """Return the largest scale that keeps every product with a level finite."""
    limit = np.float32(np.finfo(np.float32).max / largest_level)
    below: np.float32 = np.nextafter(limit, np.float32(0))
    return below


def read_scales(payload: memoryview, largest: np.float32) -> npt.NDArray[np.float32]:
    """Return the scales of a payload.

    Raises:
        UpdateRejected: reason ``payload``: one is NaN, negative or too large.
    """
    scales = np.frombuffer(payload, "<f4").astype(np.float32)
    # Written so that NaN fails too.
    if not ((scales >= 0) & (scales <= largest)).all():
        raise UpdateRejected("payload", expected="scales >= 0 and in range", got="others")
    return scales


class BlockCoder:
    """Quantises on a grid, block by block."""

    def __init__(self, grid: Grid, *, rotated: bool) -> None:
        self._grid = grid
        self._rotated = rotated
        self._seed_bytes = _SEED_BYTES if rotated else 0
        spread = BLOCK if rotated else 1
        self._largest_scale = largest_scale(grid.largest * spread)

    @property
    def unbiased(self) -> bool:
        """Tell whether the grid is: a rotation is undone exactly but for float32's rounding."""
        return self._grid.unbiased

    def num_bytes(self, count: int) -> int:
        """Return seed, scales and codes together."""
        if count == 0:
            return 0
        padded = self._padded(count)
        scales = 4 * -(-padded // BLOCK)
        return self._seed_bytes + scales + packed_bytes(padded, self._grid.width)

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return the values' bytes, quantised with the generator's randomness."""
        if len(values) == 0:
            return b""
        padded = self._padded(len(values))
        seed = int(rng.integers(2**63))
        signs = rotation.signs(seed)
        codes = np.empty(padded, np.uint8)
        scales = np.empty(-(-padded // BLOCK), np.float32)
        for blocks, where, shape in tiles(padded):
            rows = tile(values, where, shape)
            if self._rotated:
                rows = rotation.rotate(rows, signs)
            tile_codes, tile_scales = self._grid.quantize(rows, rng)
            codes[where] = tile_codes.reshape(-1)
            np.minimum(tile_scales, self._largest_scale, out=scales[blocks])
        head = seed.to_bytes(_SEED_BYTES, "little") if self._rotated else b""
        return head + little_endian(scales, "<f4") + pack(codes, self._grid.width)

    def decode(self, payload: memoryview, count: int) -> Vector:
        """Return a new vector, of the same bits on every machine.

        Raises:
            UpdateRejected: reason ``payload``: a scale is negative, not finite or too large, or a
                code is none of the grid's.
        """
        if count == 0:
            return np.empty(0, np.float32)
        padded = self._padded(count)
        signs = rotation.signs(int.from_bytes(payload[: self._seed_bytes], "little"))
        scales, codes = self._read(payload[self._seed_bytes :], padded)
        values = np.empty(padded, np.float32)
        for blocks, where, shape in tiles(padded):
            rows = self._grid.levels(codes[where].reshape(shape))
            factors = scales[blocks, np.newaxis]
            if self._rotated:
                rows = rotation.hadamard(rows)
                factors = factors * np.float32(shape[1] ** -0.5) * signs[: shape[1]]
            np.multiply(rows, factors, out=values[where].reshape(shape))
        return values[:count]

    def _read(
        self, body: memoryview, padded: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        scale_bytes = 4 * -(-padded // BLOCK)
        scales = read_scales(body[:scale_bytes], self._largest_scale)
        codes: npt.NDArray[np.uint8] = unpack(
            body[scale_bytes:], padded, self._grid.width, np.uint8
        )
        if codes.min() < self._grid.lowest_code:
            raise UpdateRejected("payload", expected="codes of the grid", got=int(codes.min()))
        return scales, codes

    def _padded(self, count: int) -> int:
        return rotation.padded(count) if self._rotated else count


def tile(values: Vector, where: slice, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return part of a vector as rows, filled up with zeros behind its end."""
    found = values[where]
    if len(found) == shape[0] * shape[1]:
        return found.reshape(shape)
    filled = np.zeros(shape, np.float32)
    filled.reshape(-1)[: len(found)] = found
    return filled
