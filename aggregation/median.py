"""The coordinate-wise median: half of the cohort must lie before it does.

Source: Yin et al. 2018, arXiv:1803.01498.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from aggregation.columns import Rows, reduce_columns
from aggregation.contracts import BUFFERED, AggregatorOptions, Memory, RoundContext, UpdateFile
from fedge.errors import AggregationError
from fedge.params import Layout, Vector


@BUFFERED.register("median")
class CoordinateMedian:
    """Median of every coordinate over the clients; an even number averages the middle two.

    Unweighted: neither examples nor staleness count, because a weight would be one more thing to
    lie about.
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
        """Return the median delta; nothing is remembered."""
        if len(updates) == 0:
            raise AggregationError("there is no update to take the median of")
        return reduce_columns(updates, layout.size, _median), {}


def _median(rows: Rows) -> Vector:
    # Five times faster than numpy's median; a sorting network of np.minimum and np.maximum,
    # selection and torch's sort are all slower than this sort.
    rows.sort(axis=0)
    return middle(rows)


def middle(rows: Rows) -> Vector:
    """Return the median of ``[N, K]`` rows that are sorted along axis 0, ``[K]``."""
    low, high = (len(rows) - 1) // 2, len(rows) // 2
    median: Vector = (rows[low] + rows[high]) / np.float32(2)
    return median
