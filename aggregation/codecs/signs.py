"""Less than a bit a value: the signs of a random share of the rotated coordinates."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from aggregation.codecs import rotation
from aggregation.codecs.bits import pack, packed_bytes, unpack
from aggregation.codecs.blocks import largest_scale, read_scales, tile, tiles
from aggregation.codecs.coders import VALUE_CODERS, little_endian
from aggregation.codecs.selections import parse_fraction, random_subset
from fedge.params import Vector

BLOCK = rotation.BLOCK
_SEED_BYTES = 8
_SEED_MASK = 2**64 - 1
# Fewer signs than these could miss a block's energy altogether.
_FEWEST = 64
# Standard deviation of a normal variable over its mean magnitude.
_MEAN_INVERSE = math.sqrt(math.pi / 2)
_SMALLEST = np.float32(2.0**-100)


@VALUE_CODERS.register("signs")
class Signs:
    """DRIVE on a random share of each rotated block of 4096, with the scale that is unbiased.

    As with `eden`, that it is unbiased under a uniformly random rotation makes it nearly so under
    a Hadamard one. The error of one vector is large, pi / (2 share) - 1 of its energy, and that of
    a mean over n clients n times smaller. Payload: a seed for signs and share (8 bytes), a
    float32 scale a block, one bit a sent coordinate. Blocks of a tail send at least 64 signs.

    Source: Vargaftik et al., DRIVE (2021); Konečný and Richtárik, Randomized Distributed Mean
    Estimation (2018).
    """

    unbiased = False

    def __init__(self, option: str) -> None:
        self._share = parse_fraction(option)
        self._largest_scale = largest_scale(BLOCK)

    def num_bytes(self, count: int) -> int:
        """Return seed, scales and signs together."""
        if count == 0:
            return 0
        padded = rotation.padded(count)
        return _SEED_BYTES + 4 * -(-padded // BLOCK) + packed_bytes(self._num_signs(padded), 1)

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return the values' bytes; the generator draws the seed."""
        if len(values) == 0:
            return b""
        padded = rotation.padded(len(values))
        seed = int(rng.integers(2**63))
        row_signs = rotation.signs(seed)
        positive = np.empty(self._num_signs(padded), np.uint8)
        scales = np.empty(-(-padded // BLOCK), np.float32)
        start = 0
        for blocks, where, shape in tiles(padded):
            rows = rotation.rotate(tile(values, where, shape), row_signs)
            sent = rows[:, self._sent(seed, shape[1])]
            positive[start : start + sent.size] = (sent > 0).reshape(-1)
            start += sent.size
            np.minimum(_row_scales(rows, sent), self._largest_scale, out=scales[blocks])
        head = seed.to_bytes(_SEED_BYTES, "little")
        return head + little_endian(scales, "<f4") + pack(positive, 1)

    def decode(self, payload: memoryview, count: int) -> Vector:
        """Return a new vector, of the same bits on every machine.

        Raises:
            UpdateRejected: reason ``payload``: a scale is not in range, or a bit is set behind the
                last sign.
        """
        if count == 0:
            return np.empty(0, np.float32)
        padded = rotation.padded(count)
        seed = int.from_bytes(payload[:_SEED_BYTES], "little")
        row_signs = rotation.signs(seed)
        split = _SEED_BYTES + 4 * -(-padded // BLOCK)
        scales = read_scales(payload[_SEED_BYTES:split], self._largest_scale)
        positive = unpack(payload[split:], self._num_signs(padded), 1, np.uint8)
        values = np.empty(padded, np.float32)
        start = 0
        for blocks, where, shape in tiles(padded):
            places = self._sent(seed, shape[1])
            stop = start + shape[0] * len(places)
            rows = np.zeros(shape, np.float32)
            rows[:, places] = 2.0 * positive[start:stop].reshape(shape[0], -1) - 1.0
            start = stop
            factors = scales[blocks, np.newaxis] * np.float32(shape[1] ** -0.5)
            factors = factors * row_signs[: shape[1]]
            np.multiply(rotation.hadamard(rows), factors, out=values[where].reshape(shape))
        return values[:count]

    def _num_signs(self, padded: int) -> int:
        whole, tail = divmod(padded, BLOCK)
        return whole * self._num_sent(BLOCK) + (self._num_sent(tail) if tail else 0)

    def _num_sent(self, length: int) -> int:
        return min(length, max(_FEWEST, math.ceil(self._share * length)))

    def _sent(self, seed: int, length: int) -> npt.NDArray[np.int64]:
        # Another stream than that of the signs, which the seed itself begins.
        return random_subset(seed ^ _SEED_MASK, length, self._num_sent(length))


def _row_scales(
    rows: npt.NDArray[np.float32], sent: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the energy of each row over the sum of its sent magnitudes.

    At most twice what it is for normal coordinates: rows whose energy lies elsewhere, which is
    next to impossible for more than 64 signs, would otherwise be blown up.
    """
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    empty = largest < _SMALLEST
    units = rows * (np.float32(1) / np.where(empty, np.float32(1), largest))[:, np.newaxis]
    energies = np.einsum("rl,rl->r", units, units)
    share = rows.shape[1] / sent.shape[1]
    usual = np.sqrt(energies / np.float32(rows.shape[1])) * np.float32(_MEAN_INVERSE * share)
    scales = 2 * usual
    sums = np.abs(sent).sum(axis=1) / np.where(empty, np.float32(1), largest)
    np.divide(energies, sums, out=scales, where=sums * scales > energies)
    return np.where(empty, np.float32(0), scales * largest)
