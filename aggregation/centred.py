"""Centred clipping: each update may pull the last aggregate a bounded way only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aggregation.clipping import Bounds, ClippedSum
from aggregation.contracts import (
    STREAMING,
    AggregatorOptions,
    ClientUpdate,
    Memory,
    RoundContext,
)
from aggregation.mean import RunningSum
from aggregation.norms import norm_of
from fedge.params import Layout, Vector


@dataclass
class CentredSum:
    """A partial aggregate around a centre.

    Attributes:
        centre: aggregate of the last round, ``[size]``.
        offset: scratch for one update's offset, ``[size]``.
    """

    centre: Vector
    offset: Vector
    clipped: ClippedSum


@STREAMING.register("centred-clipping")
class CentredClipping:
    """The last aggregate plus the mean of the updates' clipped offsets from it.

    The bound on an offset adapts as in `aggregation.bounded`. One iteration a round, which is
    what lets updates be added as they come.

    Source: Karimireddy et al. 2021, arXiv:2012.10333.
    """

    def __init__(self, options: AggregatorOptions) -> None:
        self._options = options

    def init(self, layout: Layout, context: RoundContext) -> CentredSum:
        """Return an empty sum around the last aggregate; around zero in the first round."""
        options, memory = self._options, context.memory
        centre = memory.get("centre")
        if not isinstance(centre, np.ndarray) or centre.shape != (layout.size,):
            centre = np.zeros(layout.size, np.float32)
        bounds = Bounds.of(memory, options.norm_bound, options.bound_factor)
        offset = np.empty(layout.size, np.float32)
        return CentredSum(centre, offset, ClippedSum(bounds, RunningSum(layout.size)))

    def add(self, state: CentredSum, update: ClientUpdate) -> CentredSum:
        """Add one update in place."""
        np.subtract(update.delta, state.centre, out=state.offset)
        distance = norm_of(state.offset)
        state.clipped.add(state.offset, distance, update.num_examples, update.discount)
        return state

    def merge(self, left: CentredSum, right: CentredSum) -> CentredSum:
        """Add the right partial aggregate, of the same round, to the left one in place."""
        left.clipped.merge(right.clipped)
        return left

    def finish(self, state: CentredSum) -> tuple[Vector, Memory]:
        """Return the new centre, and remember it with the medians."""
        mean, memory = state.clipped.finish()
        mean += state.centre
        return mean, {**memory, "centre": mean.copy()}
