"""Which coordinates travel: the largest, or random ones."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt

from aggregation.codecs import indices
from aggregation.codecs.coders import SELECTIONS, Indices
from fedge.errors import ConfigError
from fedge.params import Vector

_FRACTION = re.compile(r"0?\.\d{1,9}|1(\.0{1,9})?")
_CHUNK = 65_536
_SAMPLE = 65_536
_SEED_BYTES = 8


def parse_fraction(option: str) -> float:
    """Return the share of coordinates that a stage keeps.

    Raises:
        ConfigError: it is no decimal in (0, 1].
    """
    if not _FRACTION.fullmatch(option) or float(option) <= 0:
        raise ConfigError(f"expected a share in (0, 1] such as 0.05, got {option[:20]!r}")
    return float(option)


def kept(fraction: float, size: int) -> int:
    """Return k for a vector of that length: the nearest whole number, at least 1 if it can be."""
    return min(size, max(1, round(fraction * size)))


@SELECTIONS.register("topk")
class TopK:
    """The k largest magnitudes; of equal ones those that come first. Indices are Elias-Fano coded.

    Source: Aji and Heafield, Sparse Communication for Distributed Gradient Descent (2017).
    """

    def __init__(self, option: str) -> None:
        self.fraction = parse_fraction(option)

    def num_kept(self, size: int) -> int:
        """Return k."""
        return kept(self.fraction, size)

    def num_bytes(self, size: int) -> int:
        """Return the length of the coded indices."""
        return indices.num_bytes(size, self.num_kept(size))

    def select(self, values: Vector, rng: np.random.Generator) -> tuple[Indices, bytes]:  # noqa: ARG002
        """Return where the k largest magnitudes are."""
        chosen = largest(values, self.num_kept(len(values)))
        return chosen, indices.encode(chosen, len(values))

    def decode(self, payload: memoryview, size: int) -> Indices:
        """Return the coded indices."""
        return indices.decode(payload, size, self.num_kept(size))


@SELECTIONS.register("randomk")
class RandomK:
    """k coordinates that a 64-bit seed tells; no index travels.

    Source: Konečný et al., Federated Learning: Strategies for Improving Communication Efficiency
    (2016).
    """

    def __init__(self, option: str) -> None:
        self.fraction = parse_fraction(option)

    def num_kept(self, size: int) -> int:
        """Return k."""
        return kept(self.fraction, size)

    def num_bytes(self, size: int) -> int:
        """Return the length of the seed."""
        return _SEED_BYTES if size else 0

    def select(self, values: Vector, rng: np.random.Generator) -> tuple[Indices, bytes]:
        """Return k coordinates drawn by a fresh seed, and the seed."""
        if len(values) == 0:
            return np.empty(0, np.int64), b""
        seed = int(rng.integers(2**63))
        chosen = random_subset(seed, len(values), self.num_kept(len(values)))
        return chosen, seed.to_bytes(_SEED_BYTES, "little")

    def decode(self, payload: memoryview, size: int) -> Indices:
        """Return the coordinates that the seed draws."""
        return random_subset(int.from_bytes(payload, "little"), size, self.num_kept(size))


def largest(values: Vector, count: int) -> Indices:
    """Return where the ``count`` largest magnitudes are, in increasing order; ties by place."""
    near = _candidates(values, count)
    magnitudes = np.abs(values[near])
    if len(near) == count:
        return near
    threshold = np.partition(magnitudes, len(near) - count)[len(near) - count]
    chosen = magnitudes > threshold
    equal = np.flatnonzero(magnitudes == threshold)
    chosen[equal[: count - np.count_nonzero(chosen)]] = True
    best: Indices = near[chosen]
    return best


def _candidates(values: Vector, count: int) -> Indices:
    """Return where the magnitudes are that may be among the largest: at least ``count``.

    A threshold from a sample leaves a little more than ``count``; should it leave fewer, all stay.
    """
    everything: Indices = np.arange(len(values))
    if len(values) <= 2 * _SAMPLE:
        return everything
    sample = np.abs(values[:: len(values) // _SAMPLE])
    expected = len(sample) * count / len(values)
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 8)
    if rank >= len(sample):
        return everything
    threshold = np.partition(sample, len(sample) - rank)[len(sample) - rank]
    found = [
        np.flatnonzero(np.abs(values[i : i + _CHUNK]) >= threshold) + i
        for i in range(0, len(values), _CHUNK)
    ]
    near: Indices = np.concatenate(found)
    return near if len(near) >= count else everything


def random_subset(seed: int, size: int, count: int) -> Indices:
    """Return ``count`` of ``size`` coordinates, each subset as likely, in increasing order.

    The same on every machine and version of numpy: only PCG64's raw stream is used. Draws that
    fall on a coordinate that is in already are made again; never more than are missing at a time.
    """
    if 2 * count > size:
        outside = _mask(seed, size, size - count)
        return _where(~outside)
    return _where(_mask(seed, size, count))


def _mask(seed: int, size: int, count: int) -> npt.NDArray[np.bool_]:
    stream = np.random.PCG64(seed)
    inside = np.zeros(size, bool)
    missing = count
    while missing:
        draws = stream.random_raw(missing) >> np.uint64(11)
        inside[(draws * (2.0**-53 * size)).astype(np.int64)] = True
        missing = count - int(np.count_nonzero(inside))
    return inside


def _where(mask: npt.NDArray[np.bool_]) -> Indices:
    return np.flatnonzero(mask).astype(np.int64, copy=False)
