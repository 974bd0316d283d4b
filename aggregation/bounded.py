"""The default: a mean whose updates are bounded in norm, weight and direction."""

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
from aggregation.course import COURSE, Course
from aggregation.mean import RunningSum
from fedge.params import Layout, Vector


@dataclass
class BoundedSum:
    """A partial aggregate of bounded updates; two of the same round merge.

    Attributes:
        num_opposed: updates that were left out because they go against the course.
    """

    clipped: ClippedSum
    course: Course
    num_opposed: int = 0


@STREAMING.register("bounded-mean")
class BoundedMean:
    """Weighted mean of updates scaled down to the last round's median norm.

    The first round has no such norm yet: its updates are all scaled to its own median. What an
    update weighs is bounded by twice the median weight likewise, and an update that goes against
    the course of the last rounds is left out. With fewer than half of the clients hostile, every
    bound lies within what honest clients sent. Where more than half go against the course, the
    course is what is wrong: that round changes nothing and the next one begins a new course.

    Source: norm bounding, Sun et al. 2019, arXiv:1911.07963; adaptive by quantiles as in
    Andrew et al. 2019, arXiv:1905.03871, without their noise; history against inverted updates,
    Karimireddy et al. 2021, arXiv:2012.10333; the cosine, Cao et al. 2021, arXiv:2012.13995.
    """

    def __init__(self, options: AggregatorOptions) -> None:
        self._options = options

    def init(self, layout: Layout, context: RoundContext) -> BoundedSum:
        """Return an empty sum with the bounds of this round."""
        options, memory = self._options, context.memory
        bounds = Bounds.of(memory, options.norm_bound, options.bound_factor)
        clipped = ClippedSum(bounds, RunningSum(layout.size))
        return BoundedSum(clipped, Course.of(memory, layout))

    def add(self, state: BoundedSum, update: ClientUpdate) -> BoundedSum:
        """Add one update in place, or leave it out and count it."""
        if state.course.is_opposed_by(update.delta, update.norm):
            state.clipped.note(update.norm, update.num_examples)
            state.num_opposed += 1
            return state
        state.clipped.add(update.delta, update.norm, update.num_examples, update.discount)
        return state

    def merge(self, left: BoundedSum, right: BoundedSum) -> BoundedSum:
        """Add the right partial aggregate to the left one in place."""
        left.clipped.merge(right.clipped)
        left.num_opposed += right.num_opposed
        return left

    def finish(self, state: BoundedSum) -> tuple[Vector, Memory]:
        """Return the bounded mean, and the medians and course that bound the next round."""
        num_updates = len(state.clipped.distances)
        if 2 * state.num_opposed > num_updates:
            return np.zeros(state.clipped.sum.size, np.float32), state.clipped.medians()
        mean, memory = state.clipped.finish()
        return mean, {**memory, COURSE: state.course.after(mean)}
