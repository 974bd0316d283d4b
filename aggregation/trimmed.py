"""The coordinate-wise trimmed mean.

Source: Yin et al. 2018, arXiv:1803.01498.
"""

from __future__ import annotations

from typing import ClassVar

from aggregation.columns import Rows, reduce_columns
from aggregation.contracts import BUFFERED, AggregatorOptions, Memory, RoundContext, UpdateFile
from aggregation.malicious import num_malicious
from fedge.errors import AggregationError
from fedge.params import Layout, Vector


@BUFFERED.register("trimmed-mean")
class TrimmedMean:
    """Mean of every coordinate without its f smallest and f largest values.

    f is the assumed malicious fraction of the updates, rounded down as Flower does with its beta.
    Unweighted: neither examples nor staleness count.
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
        """Return the trimmed mean delta; nothing is remembered."""
        count = len(updates)
        if count == 0:
            raise AggregationError("there is no update to take the trimmed mean of")
        cut = num_malicious(self._options, count)

        def mean_inside(rows: Rows) -> Vector:
            rows.sort(axis=0)
            mean: Vector = rows[cut : count - cut].mean(axis=0)
            return mean

        return reduce_columns(updates, layout.size, mean_inside), {}
