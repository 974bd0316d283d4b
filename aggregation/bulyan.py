"""Bulyan: Krum picks the updates, a median-centred mean picks their coordinates.

Source: El Mhamdi et al. 2018, arXiv:1802.07927.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from aggregation.columns import Floats, Indices, Rows, reduce_columns
from aggregation.contracts import BUFFERED, AggregatorOptions, Memory, RoundContext, UpdateFile
from aggregation.gram import squared_distances
from aggregation.krum import rank
from aggregation.malicious import check_enough, num_malicious
from aggregation.median import middle
from fedge.params import Layout, Vector


@BUFFERED.register("bulyan")
class Bulyan:
    """Of N − 2f updates that Krum picks, average the N − 4f values closest to each median.

    Needs N >= 4f + 3. Unweighted: neither examples nor staleness count.
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
        """Return the mean of the values closest to the medians; nothing is remembered."""
        count = len(updates)
        f = num_malicious(self._options, count)
        check_enough("bulyan", count, f, per_malicious=4, more=3)
        selected = select(squared_distances(updates, layout.size), f)

        def reduce(rows: Rows) -> Vector:
            return mean_around_median(rows, count - 4 * f)

        return reduce_columns(updates, layout.size, reduce, selected), {}


def select(distances: Floats, f: int) -> Indices:
    """Return the N − 2f updates that Krum picks one after another, each from those left.

    Flower takes the N − 2f best of a single scoring instead.
    """
    left = np.arange(len(distances))
    selected = []
    for _ in range(len(distances) - 2 * f):
        best = rank(distances[np.ix_(left, left)], f)[0]
        selected.append(left[best])
        left = np.delete(left, best)
    return np.sort(np.asarray(selected, np.intp))


def mean_around_median(rows: Rows, num_kept: int) -> Vector:
    """Return the mean of the values of each column that are closest to its median, ``[K]``.

    Args:
        rows: ``[M, K]``; sorted in place.
        num_kept: how many to average.
    """
    rows.sort(axis=0)
    median = middle(rows)
    # Sorted, the closest values stand side by side: find where they begin.
    first = np.zeros(rows.shape[1], np.intp)
    nearest = np.full(rows.shape[1], np.inf, np.float32)
    for start in range(len(rows) - num_kept + 1):
        reach = np.maximum(median - rows[start], rows[start + num_kept - 1] - median)
        better = reach < nearest
        first[better] = start
        nearest[better] = reach[better]
    kept = first + np.arange(num_kept)[:, None]
    mean: Vector = np.take_along_axis(rows, kept, axis=0).mean(axis=0)
    return mean
