"""Squared norms, in chunks that stay in the cache."""

from __future__ import annotations

import math

import numpy as np

from fedge.errors import UpdateRejected
from fedge.params import Vector

_CHUNK = 65_536
# Beyond these a float32 sum of squares overflows or loses its last digits.
_SMALL, _LARGE = 1e-20, 1e38


def energy(values: Vector) -> float:
    """Return the squared L2 norm.

    Raises:
        UpdateRejected: reason ``not-finite``: a value is NaN or infinite.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        total = sum(_chunk_energy(values[i : i + _CHUNK]) for i in range(0, len(values), _CHUNK))
    if not math.isfinite(total):
        raise UpdateRejected("not-finite", expected="finite numbers", got=total)
    return total


def _chunk_energy(chunk: Vector) -> float:
    total = float(np.dot(chunk, chunk))
    if _SMALL < total < _LARGE:
        return total
    wide = chunk.astype(np.float64)
    return float(np.dot(wide, wide))


def error_energy(values: Vector, decoded: Vector) -> float:
    """Return the squared L2 norm of the difference of two finite vectors."""
    total = 0.0
    with np.errstate(over="ignore", under="ignore"):
        for i in range(0, len(values), _CHUNK):
            total += _chunk_energy(values[i : i + _CHUNK] - decoded[i : i + _CHUNK])
    return total


def distortion(error: float, whole: float) -> float:
    """Return the share of the energy that was lost; 0 where there was none."""
    return error / whole if whole > 0 else 0.0
