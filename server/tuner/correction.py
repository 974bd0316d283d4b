"""What real rounds say of what virtual ones promised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.tuner.search import LOSS_FLOOR
from server.tuner.space import REACH, Space, Values, distance

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

HALF_LIFE_ROUNDS = 5.0
LOSS_CEILING = 1e6
"""A mean loss above this counts as this: of a model that diverged it is not finite."""
PRIOR = 1.0
"""Outcomes that promise and result agree, counted beside those that were seen."""


@dataclass(frozen=True)
class Outcome:
    """A search's choice: what was promised of it and what the real rounds with it brought.

    Attributes:
        round: the first of those rounds.
        surprise: real gain less promised gain, both falls of a loss's logarithm.
    """

    round: int
    values: Values
    surprise: float


def outcomes_of(past: Sequence[FrozenTrial], loss: float | None) -> list[Outcome]:
    """Return an outcome for each search, by the gate set's loss until the next one.

    Args:
        past: the trial of each real round, oldest first.
        loss: of the gate set now.
    """
    searches = [trial for trial in past if trial.user_attrs["promised"] is not None]
    losses = [trial.user_attrs["loss_before"] for trial in searches] + [loss]
    found = []
    for trial, before, after in zip(searches, losses, losses[1:], strict=False):
        if before is not None and after is not None:
            gain = _log(before) - _log(after)
            surprise = gain - trial.user_attrs["promised"]
            found.append(Outcome(trial.user_attrs["round"], dict(trial.params), surprise))
    return found


def correction(space: Space, values: Values, outcomes: Sequence[Outcome], round: int) -> float:
    """Return what to add to a virtual gain: how real rounds nearby differed from the usual.

    Real clients are more and other than pseudo-clients, so that all gains may differ; only what a
    point differs more than others counts. Old outcomes fade, and few count for little.
    """
    if len(outcomes) < 2:
        return 0.0
    ages = [math.pow(2.0, (each.round - round) / HALF_LIFE_ROUNDS) for each in outcomes]
    usual = sum(a * o.surprise for a, o in zip(ages, outcomes, strict=True)) / sum(ages)
    weights = [
        age * math.exp(-0.5 * (distance(space, values, each.values) / REACH) ** 2)
        for age, each in zip(ages, outcomes, strict=True)
    ]
    found: float = sum(w * (o.surprise - usual) for w, o in zip(weights, outcomes, strict=True))
    return found / (sum(weights) + PRIOR)


def _log(loss: float) -> float:
    return math.log(min(max(loss, LOSS_FLOOR), LOSS_CEILING))
