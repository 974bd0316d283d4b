"""Krum: trust the updates that have the closest company.

Source: Blanchard et al. 2017, arXiv:1703.02757.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from aggregation.columns import Floats, Indices, combine
from aggregation.contracts import BUFFERED, AggregatorOptions, Memory, RoundContext, UpdateFile
from aggregation.gram import squared_distances
from aggregation.malicious import check_enough, num_malicious
from fedge.params import Layout, Vector


@BUFFERED.register("krum")
class Krum:
    """The one update that is closest to its N − f − 2 nearest; needs N >= 2f + 3.

    Weights and staleness do not count.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(self, options: AggregatorOptions) -> None:
        self._options = options

    def finish(
        self,
        updates: UpdateFile,
        layout: Layout,
        context: RoundContext,  # noqa: ARG002
    ) -> tuple[Vector, Memory]:
        """Return the chosen delta; nothing is remembered."""
        _, ranked = _ranked("krum", self._options, updates, layout)
        coefficients = np.zeros(len(updates))
        coefficients[ranked[0]] = 1.0
        return combine(updates, layout.size, coefficients), {}


@BUFFERED.register("multi-krum")
class MultiKrum:
    """Mean of the N − f − 2 updates with the best Krum scores; needs N >= 2f + 3.

    The mean weighs by staleness alone: how many examples a client says it has is no reason to
    trust it more.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(self, options: AggregatorOptions) -> None:
        self._options = options

    def finish(
        self,
        updates: UpdateFile,
        layout: Layout,
        context: RoundContext,  # noqa: ARG002
    ) -> tuple[Vector, Memory]:
        """Return the mean of the chosen deltas; nothing is remembered."""
        f, ranked = _ranked("multi-krum", self._options, updates, layout)
        chosen = ranked[: len(updates) - f - 2]
        coefficients = np.zeros(len(updates))
        coefficients[chosen] = updates.discounts[chosen]
        return combine(updates, layout.size, coefficients / coefficients.sum()), {}


def _ranked(
    name: str, options: AggregatorOptions, updates: UpdateFile, layout: Layout
) -> tuple[int, Indices]:
    """Return f and the updates' indices by score; refuse a round with too few for f."""
    f = num_malicious(options, len(updates))
    check_enough(name, len(updates), f, per_malicious=2, more=3)
    return f, rank(squared_distances(updates, layout.size), f)


def rank(distances: Floats, f: int) -> Indices:
    """Return the updates' indices by Krum score, the best first, ``[N]``.

    The score is the sum of squared distances to the N − f − 2 nearest others (at least one). With
    one, the two closest updates always have the same score; then the one closer to all goes
    first, so that the numbers of the clients decide nothing.

    Args:
        distances: squared, ``[N, N]``, diagonal 0.
        f: number of updates taken to be hostile.
    """
    count = len(distances)
    last = min(max(1, count - f - 2), count - 1)
    # Each one's distance to itself, 0, is always among the nearest and adds nothing.
    nearest = np.partition(distances, last, axis=1)[:, : last + 1]
    return np.lexsort((distances.sum(axis=1), nearest.sum(axis=1)))
