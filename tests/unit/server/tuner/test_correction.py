"""What real rounds add to virtual gains."""

import math

import optuna
import pytest

from server.tuner.correction import Outcome, correction, outcomes_of
from server.tuner.space import Parameter

SPACE = (Parameter("train.learning_rate", low=0.01, high=1.0, log=True),)


def outcome(rate: float, surprise: float, round: int = 5) -> Outcome:
    return Outcome(round, {"train.learning_rate": rate}, surprise)


def at(rate: float, *outcomes: Outcome, round: int = 6) -> float:
    return correction(SPACE, {"train.learning_rate": rate}, outcomes, round)


def test_a_difference_that_all_points_share_says_nothing() -> None:
    outcomes = [outcome(rate, -0.3) for rate in (0.01, 0.1, 1.0)]
    assert at(0.05, *outcomes) == pytest.approx(0)


def test_a_point_that_disappointed_more_than_others_loses_near_it_alone() -> None:
    outcomes = [outcome(0.02, 0.0), outcome(0.02, 0.0), outcome(0.5, -1.0), outcome(0.5, -1.0)]
    assert at(0.5, *outcomes) < -0.2
    assert at(0.02, *outcomes) > 0.2
    assert abs(at(0.1, *outcomes)) < abs(at(0.5, *outcomes)) / 2


def test_old_outcomes_fade_and_one_alone_says_nothing() -> None:
    old, usual = outcome(0.5, -1.0, round=0), outcome(0.02, 0.0)
    assert abs(at(0.5, old, usual)) < abs(at(0.5, outcome(0.5, -1.0), usual))
    assert at(0.5, outcome(0.5, -1.0)) == 0
    assert at(0.5) == 0


def trial(
    round: int, rate: float, loss: float | None, promised: float | None
) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE,
        value=0.0,
        params={"train.learning_rate": rate},
        distributions={"train.learning_rate": optuna.distributions.FloatDistribution(0.01, 1.0)},
        user_attrs={"round": round, "loss_before": loss, "promised": promised},
    )


def test_a_search_is_compared_with_all_rounds_until_the_next_one() -> None:
    past = [
        trial(1, 0.5, 2.0, 1.0),
        trial(2, 0.5, 1.5, None),
        trial(3, 0.1, 1.0, 0.3),
        trial(4, 0.1, 0.9, None),
    ]
    first, second = outcomes_of(past, 0.8)
    assert (first.round, first.values) == (1, {"train.learning_rate": 0.5})
    assert first.surprise == pytest.approx(math.log(2.0) - 1.0)
    assert second.surprise == pytest.approx(math.log(1.0 / 0.8) - 0.3)


def test_a_search_whose_loss_is_not_known_has_no_outcome_and_a_diverged_one_a_finite_one() -> None:
    past = [trial(1, 0.5, None, 1.0), trial(2, 0.5, 1.0, 1.0)]
    (only,) = outcomes_of(past, math.inf)
    assert only.round == 2
    assert math.isfinite(only.surprise)
