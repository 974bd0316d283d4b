"""The default: a mean whose updates are bounded in norm, weight and direction."""

from __future__ import annotations

import logging
from dataclasses import dataclass

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

log = logging.getLogger(__name__)

SLACK = 1.5
"""At most so many times the hostile share are set aside: some honest ones may be among them."""


@dataclass
class BoundedSum:
    """A partial aggregate of bounded updates; two of the same round merge.

    Attributes:
        ahead: the updates that count.
        back: those that go against the course, set aside.
    """

    ahead: ClippedSum
    back: ClippedSum
    course: Course


@STREAMING.register("bounded-mean")
class BoundedMean:
    """Weighted mean of updates scaled down to the last round's median norm.

    The first round has no such norm yet: its updates are all scaled to its own median. What an
    update weighs is bounded by twice the median weight likewise. An update that goes against the
    course of the last rounds is set aside. Where more of them do than may be hostile, hostile ones
    may have turned the course: all count, and a new course begins. With fewer than half of the
    clients hostile, every bound lies within what honest clients sent.

    Source: norm bounding, Sun et al. 2019, arXiv:1911.07963; adaptive by quantiles as in
    Andrew et al. 2019, arXiv:1905.03871, without their noise; history against inverted updates,
    Karimireddy et al. 2021, arXiv:2012.10333; the cosine, Cao et al. 2021, arXiv:2012.13995.
    """

    def __init__(self, options: AggregatorOptions) -> None:
        self._options = options
        self._most_set_aside = min(0.5, SLACK * options.malicious_fraction)

    def init(self, layout: Layout, context: RoundContext) -> BoundedSum:
        """Return an empty sum with the bounds of this round."""
        options, memory = self._options, context.memory
        bounds = Bounds.of(memory, options.norm_bound, options.bound_factor)
        ahead, back = (ClippedSum(bounds, RunningSum(layout.size)) for _ in range(2))
        return BoundedSum(ahead, back, Course.of(memory, layout))

    def add(self, state: BoundedSum, update: ClientUpdate) -> BoundedSum:
        """Add one update in place, to those that count or to those set aside."""
        opposed = state.course.is_opposed_by(update.delta, update.norm)
        side = state.back if opposed else state.ahead
        side.add(update.delta, update.norm, update.num_examples, update.discount)
        return state

    def merge(self, left: BoundedSum, right: BoundedSum) -> BoundedSum:
        """Add the right partial aggregate to the left one in place."""
        left.ahead.merge(right.ahead)
        left.back.merge(right.back)
        return left

    def finish(self, state: BoundedSum) -> tuple[Vector, Memory]:
        """Return the bounded mean, and the medians and course that bound the next round."""
        ahead, back = state.ahead, state.back
        num_updates = ahead.num_updates + back.num_updates
        if back.num_updates > self._most_set_aside * num_updates:
            mean, memory = ahead.merge(back).finish()
            return mean, {**memory, COURSE: mean.copy()}
        if back.num_updates:
            log.info(
                "%d of %d updates go against the course of the last rounds and are set aside",
                back.num_updates,
                num_updates,
            )
        mean, _ = ahead.finish()
        return mean, {**ahead.with_medians_of(back), COURSE: state.course.after(mean)}
