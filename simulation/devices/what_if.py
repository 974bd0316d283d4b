"""What a round would have come to under other deadlines and over-selections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulation.devices.schedule import Schedule
from simulation.devices.timeline import LATE, Arrivals


@dataclass(frozen=True)
class Alternative:
    """One choice of the two, and what comes of it.

    Attributes:
        num_answered: updates that count; at most the target.
        round_s: how long the round takes.
        num_unused: updates that were trained and sent for nothing.
        bytes_down, bytes_up: what travels to and from all that are asked.
    """

    deadline_s: float
    over_selection: float
    num_asked: int
    num_answered: int
    round_s: float
    num_unused: int
    bytes_down: int
    bytes_up: int


def what_if(
    schedule: Schedule,
    *,
    start_s: float,
    target: int,
    deadlines_s: Sequence[float],
    over_selections: Sequence[float],
    loss_is_noticed: bool = False,
) -> list[Alternative]:
    """Return one row for every pair of deadline and over-selection.

    Args:
        schedule: of as many clients, in random order, as the largest over-selection asks: a
            smaller one asks the first of them. Over-selections that would ask more ask all.
        start_s: when they are asked.
        target: updates that end the round.
    """
    # As in server.selection: 1.1 x 10 is a little more than 11 in binary.
    nums_asked = [math.ceil(target * each - 1e-9) for each in over_selections]
    return [
        _alternative(
            over_selection,
            deadline_s,
            target,
            start_s,
            Arrivals(
                schedule.first(num_asked),
                start_s=start_s,
                deadline_s=deadline_s,
                loss_is_noticed=loss_is_noticed,
            ),
        )
        for over_selection, num_asked in zip(over_selections, nums_asked, strict=True)
        for deadline_s in deadlines_s
    ]


def _alternative(
    over_selection: float, deadline_s: float, target: int, start_s: float, come: Arrivals
) -> Alternative:
    num_answered = min(target, len(come))
    outcomes = come.outcomes(num_answered)
    return Alternative(
        deadline_s=deadline_s,
        over_selection=over_selection,
        num_asked=sum(outcomes.values()),
        num_answered=num_answered,
        round_s=come.ends_at(num_answered, filled=num_answered == target) - start_s,
        num_unused=outcomes[LATE],
        bytes_down=come.bytes_down,
        bytes_up=come.bytes_up,
    )
