"""What real rounds say of what virtual ones promised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.tuner.space import REACH, Space, Values, distance

HALF_LIFE_ROUNDS = 5.0
PRIOR = 1.0
"""Outcomes that promise and result agree, counted beside those that were seen."""


@dataclass(frozen=True)
class Outcome:
    """A real round's hyperparameters: what was promised of them and what came.

    Attributes:
        surprise: real gain less promised gain, both falls of a loss's logarithm.
    """

    round: int
    values: Values
    surprise: float


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
