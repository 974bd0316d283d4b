"""Random draws a client, as a function of (seed, purpose, client, round) and of nothing else."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from fedge.rng import stream_seed

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class ClientDraws:
    """Draws for any clients in any order: the same client always gets the same value.

    SplitMix64, started at a hash of seed and purpose (and of the round) and read at the position
    of the client; 52 of its 64 bits make a uniform.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def uniform(self, purpose: str, clients: Ids, round: int | Ids = 0) -> Floats:
        """Return values in (0, 1), both ends excluded.

        Args:
            purpose: draws for different purposes are independent.
            clients: ids `[N]`.
            round: one number for all, or one a client `[N]`.
        """
        start = _key(self._seed, purpose)
        if isinstance(round, np.ndarray):
            bits = _mixed(_steps(round) + np.uint64(start))
            bits += _steps(clients)
        else:
            # The scalar stays a Python int up to here: numpy's would warn that it wraps.
            bits = _steps(clients)
            bits += np.uint64(_mixed_int(start + round * _GOLDEN))
        bits = _mixed(bits)
        bits >>= np.uint64(12)
        values = bits.astype(np.float64)
        values += 0.5
        values *= 2.0**-52
        return values

    def normal(self, purpose: str, clients: Ids, round: int | Ids = 0) -> Floats:
        """Return standard normals `[N]`."""
        return np.asarray(ndtri(self.uniform(purpose, clients, round)), np.float64)

    def choice(self, purpose: str, clients: Ids, fractions: Floats) -> npt.NDArray[np.intp]:
        """Return which of the options each client gets `[N]`; fractions sum to 1."""
        chosen = np.zeros(len(clients), np.intp)
        if len(fractions) == 1:
            return chosen
        drawn = self.uniform(purpose, clients)
        # A handful of comparisons takes a third of the time of np.searchsorted.
        for bound in np.cumsum(fractions)[:-1]:  # without the last one no rounding can exceed it
            chosen += drawn >= bound
        return chosen


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> int:
    return stream_seed(seed, f"devices-{purpose}")


def _steps(numbers: Ids) -> npt.NDArray[np.uint64]:
    """Return how far along its stream each number is; its own memory, free to be changed."""
    return numbers.astype(np.int64, copy=False).view(np.uint64) * np.uint64(_GOLDEN)


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble in place: a flipped bit of the input flips each bit of the output half the time."""
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(_FIRST)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(_SECOND)
    bits ^= bits >> np.uint64(31)
    return bits


def _mixed_int(bits: int) -> int:
    bits &= _MASK
    bits = ((bits ^ (bits >> 30)) * _FIRST) & _MASK
    bits = ((bits ^ (bits >> 27)) * _SECOND) & _MASK
    return bits ^ (bits >> 31)
