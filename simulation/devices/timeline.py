"""A round in virtual time: who answers in time and in which order, and when it ends."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt

from simulation.devices.hashing import Ids
from simulation.devices.schedule import Outcome, Schedule

LATE = "late"


def arrivals(schedule: Schedule, start_s: float, deadline_s: float) -> npt.NDArray[np.intp]:
    """Return the positions of those who answer in time, first come first; ties as asked.

    Args:
        schedule: of the cohort.
        start_s: when it was asked.
        deadline_s: seconds after which answers are late; one that takes just as long is not.
    """
    order = np.argsort(schedule.finish_s, kind="stable")
    finish = schedule.finish_s[order]
    return order[(finish <= start_s + deadline_s) & np.isfinite(finish)]


class Arrivals:
    """The updates of a cohort as they come, for a server that takes them until it has enough.

    Args:
        schedule: of the cohort; its order settles ties.
        start_s: when it was asked.
        deadline_s: seconds after which the round ends at the latest; may be infinite.
        loss_is_noticed: whether the server knows at once that a device has failed. If not, it
            waits for those that fail until the deadline.

    Attributes:
        num_taken: how many `next` has returned so far.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        start_s: float,
        deadline_s: float,
        loss_is_noticed: bool = False,
    ) -> None:
        self.num_taken = 0
        self._schedule = schedule
        self._start_s = start_s
        self._ends_by_s = start_s + deadline_s
        self._loss_is_noticed = loss_is_noticed
        self._order = arrivals(schedule, start_s, deadline_s)

    def __len__(self) -> int:
        """Return how many come in time, taken or not."""
        return len(self._order)

    def next(self, num: int) -> Ids:
        """Return the clients whose updates come next, at most so many; none when none comes."""
        taken = self._order[self.num_taken : self.num_taken + num]
        self.num_taken += len(taken)
        return self._schedule.clients[taken]

    @property
    def taken(self) -> Ids:
        """The clients that `next` has returned so far."""
        return self._schedule.clients[self._order[: self.num_taken]]

    def ends_at(self, num_taken: int, *, filled: bool) -> float:
        """Return the virtual second at which the round ends.

        Args:
            num_taken: updates that the server took.
            filled: whether it then had as many good ones as it wants, and so stopped. Else the
                round ends with the last answer if all answer, or are known to have failed, and at
                the deadline if not. Without a deadline it ends when the last device stops.
        """
        schedule = self._schedule
        if filled:
            return self._arrival_s(num_taken)
        awaited = schedule.finish_s
        if self._loss_is_noticed or math.isinf(self._ends_by_s):
            awaited = schedule.stops_s
        last = float(awaited.max(initial=self._start_s))
        return min(last, self._ends_by_s)

    def outcomes(self, num_taken: int) -> dict[str, int]:
        """Return how many devices ended how; those that would have come later are ``late``."""
        codes = Counter(self._schedule.outcome.tolist())
        counts = {Outcome(code).label: num for code, num in sorted(codes.items())}
        num_ok = counts.pop(Outcome.OK.label, 0)
        return {Outcome.OK.label: num_taken, LATE: num_ok - num_taken, **counts}

    @property
    def bytes_down(self) -> int:
        """Bytes that travelled to the cohort, those for nothing included."""
        return round(float(self._schedule.bytes_down.sum()))

    @property
    def bytes_up(self) -> int:
        """Bytes that the cohort sends, late updates included: nobody calls them off."""
        return round(float(self._schedule.bytes_up.sum()))

    def _arrival_s(self, num_taken: int) -> float:
        if not num_taken:
            return self._start_s
        return float(self._schedule.finish_s[self._order[num_taken - 1]])
