"""The coordinate-wise trimmed mean.

Source: Yin et al. 2018, arXiv:1803.01498.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from aggregation.columns import chunks
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
        mean = np.empty(layout.size, np.float32)
        for part, rows in chunks(updates, layout.size):
            rows.sort(axis=0)
            mean[part] = rows[cut : count - cut].mean(axis=0)
        return mean, {}
