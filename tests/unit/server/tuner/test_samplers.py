"""Proposals: within the space, repeatable, and drawn to what was good."""

import math

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from server.tuner.samplers import PROPOSED, SAMPLERS, distributions_of
from server.tuner.space import Parameter, Values

SPACE = (
    Parameter("train.learning_rate", low=1e-3, high=10.0, log=True),
    Parameter("train.local_epochs", low=1, high=4, whole=True),
    Parameter("aggregation.codec", choices=("raw", "int8")),
)


def seen(points: list[Values], values: list[float]) -> list[FrozenTrial]:
    return [
        create_trial(
            state=TrialState.COMPLETE,
            value=value,
            params=dict(point),
            distributions=distributions_of(SPACE),
            user_attrs={PROPOSED: True},
        )
        for point, value in zip(points, values, strict=True)
    ]


def propose(name: str, trials: list[FrozenTrial], count: int = 6, seed: int = 1) -> list[Values]:
    return SAMPLERS[name]().propose(trials, SPACE, count, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ["tpe", "random", "grid"])
@pytest.mark.parametrize("num_seen", [0, 20])
def test_proposals_lie_in_the_space_and_repeat(name: str, num_seen: int) -> None:
    trials = seen(propose("random", [], num_seen, seed=9), [0.5] * num_seen)
    points = propose(name, trials)
    assert len(points) == 6
    assert points == propose(name, trials)
    assert all(each.holds(point[each.key]) for point in points for each in SPACE)


def test_tpe_is_drawn_to_what_was_good() -> None:
    points = propose("random", [], 60, seed=2)
    values = [-abs(math.log10(float(point["train.learning_rate"]) / 0.1)) for point in points]
    rates = [float(p["train.learning_rate"]) for p in propose("tpe", seen(points, values), 20)]
    near = sum(0.02 < rate < 0.5 for rate in rates)
    assert near >= 12  # of 20; a third of the logarithmic range


def test_a_grid_goes_on_where_it_was_and_begins_again() -> None:
    first = propose("grid", [], 30)
    assert len({tuple(point.values()) for point in first}) == 30
    trials = seen(first, [0.0] * 30)
    second = propose("grid", trials, 30)
    assert len({tuple(point.values()) for point in first + second}) == 40  # 5 · 4 · 2
    assert second[10:] == first[:20]
