"""Random draws that partitioners and synthetic tasks share."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MAX_SIGMA = 3.0
"""Largest spread of log sizes; at 3 one client in a thousand has over 100 times the mean."""

Floats = npt.NDArray[np.float64]


def draw_size(rng: np.random.Generator, mean: float, sigma: float, smallest: int) -> int:
    """Return one log-normal size of that mean (before rounding and the least size)."""
    if sigma == 0:
        return max(smallest, round(mean))
    size = mean * math.exp(sigma * rng.standard_normal() - sigma * sigma / 2)
    return max(smallest, round(size))


def draw_shares(rng: np.random.Generator, alphas: Floats) -> Floats:
    """Return one Dirichlet draw; where alpha is too small for one, one entry gets everything."""
    shares: Floats = rng.dirichlet(alphas)
    if math.isfinite(shares[0]):  # it is all NaN or not at all
        return shares
    everything = np.zeros(len(alphas))
    everything[rng.integers(len(alphas))] = 1.0
    return everything
