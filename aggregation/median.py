"""The coordinate-wise median: half of the cohort must lie before it does.

Source: Yin et al. 2018, arXiv:1803.01498.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aggregation.contracts import BUFFERED, Memory, RoundContext, UpdateFile
from fedge.errors import AggregationError
from fedge.params import Layout, Vector

_CHUNK_BYTES = 16 * 1024 * 1024


@BUFFERED.register("median")
class CoordinateMedian:
    """Median of every coordinate over the clients, unweighted."""

    def finish(
        self,
        updates: UpdateFile,
        layout: Layout,
        context: RoundContext,  # noqa: ARG002
    ) -> tuple[Vector, Memory]:
        """Return the median delta; holds 16 MiB of updates at a time."""
        if len(updates) == 0:
            raise AggregationError("there is no update to take the median of")
        median = np.empty(layout.size, np.float32)
        width = max(1, _CHUNK_BYTES // (4 * len(updates)))
        for start in range(0, layout.size, width):
            stop = min(start + width, layout.size)
            median[start:stop] = _median_rows(updates.columns(start, stop))
        return median, {}


def _median_rows(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the median over ``[N, K]``'s rows, ``[K]``; sorts in place.

    numpy's vectorised sort takes a fifth of the time of its median.
    """
    rows.sort(axis=0)
    low, high = (len(rows) - 1) // 2, len(rows) // 2
    median: npt.NDArray[np.float32] = (rows[low] + rows[high]) / np.float32(2)
    return median
