"""The weights that a candidate is scored at, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedge.naming import Registry
from fedge.params import Vector

Readout = Callable[[Sequence[Vector]], Vector]
"""Returns weights to score, of those after each virtual round so far; there is one at least."""

READOUTS: Registry[Readout] = Registry("readout")


@READOUTS.register("average")
def average(path: Sequence[Vector]) -> Vector:
    """Return the mean of the later half of the rounds.

    At the last weights alone a lower learning rate would look better than it is: it lowers the
    loss at once, because its steps are less noisy, and learns less in the rounds to come. The
    mean is rid of most of the noise for high rates too.

    Source: Polyak and Juditsky 1992; the half is Rakhlin, Shamir and Sridharan, Making Gradient
    Descent Optimal for Strongly Convex Stochastic Optimization, ICML 2012 (suffix averaging). The
    bias: Wu et al., Understanding Short-Horizon Bias in Stochastic Meta-Optimization, ICLR 2018.
    """
    half = path[len(path) // 2 :]
    mean = np.zeros(len(half[0]), np.float64)
    for weights in half:
        mean += weights
    return (mean / len(half)).astype(np.float32)


@READOUTS.register("last")
def last(path: Sequence[Vector]) -> Vector:
    """Return the last weights."""
    return path[-1]
