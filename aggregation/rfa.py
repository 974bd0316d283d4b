"""The geometric median of whole updates (RFA): no minority can pull it far, however hard.

Source: Pillutla, Kakade and Harchaoui 2022, arXiv:1912.13445 (smoothed Weiszfeld).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from aggregation.columns import Floats, combine
from aggregation.contracts import BUFFERED, AggregatorOptions, Memory, RoundContext, UpdateFile
from aggregation.gram import shortening, squared_distances
from fedge.errors import AggregationError
from fedge.params import Layout, Vector

_SMOOTHING = 1e-6
_TOLERANCE = 1e-7
_MAX_ITERATIONS = 200


@BUFFERED.register("geometric-median")
class GeometricMedian:
    """The point whose distances to all updates have the smallest sum.

    Every update counts the same while the point is sought, whatever examples it claims; staleness
    then scales the weights that were found. An update longer than 1000 median norms is shortened
    to that, which turns its pull by less than a thousandth.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(self, options: AggregatorOptions) -> None:
        del options  # it assumes nothing but an honest majority

    def finish(
        self,
        updates: UpdateFile,
        layout: Layout,
        context: RoundContext,  # noqa: ARG002
    ) -> tuple[Vector, Memory]:
        """Return the geometric median delta; nothing is remembered."""
        if len(updates) == 0:
            raise AggregationError("there is no update to take the geometric median of")
        weights = weiszfeld(squared_distances(updates, layout.size)) * updates.discounts
        coefficients = weights / weights.sum() * shortening(updates.norms)
        return combine(updates, layout.size, coefficients), {}


def weiszfeld(distances: Floats) -> Floats:
    """Return the weights, ``[N]`` with sum 1, of which the geometric median is the mean.

    The distances between the points are all it takes: from z = Σ w_j x_j to x_i it is
    ‖x_i − z‖² = Σ_j w_j D_ij − ½ Σ_jk w_j w_k D_jk.

    Args:
        distances: squared, ``[N, N]``.
    """
    weights = np.full(len(distances), 1 / len(distances))
    apart = distances[distances > 0]
    if apart.size == 0:
        return weights
    floor = _SMOOTHING * float(np.sqrt(np.median(apart)))
    for _ in range(_MAX_ITERATIONS):
        means = distances @ weights
        squares = np.maximum(means - weights @ means / 2, 0)
        pulls = 1 / np.maximum(np.sqrt(squares), floor)
        previous, weights = weights, pulls / pulls.sum()
        if np.abs(weights - previous).max() < _TOLERANCE:
            break
    return weights
