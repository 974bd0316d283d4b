"""What real rounds add to virtual gains."""

import pytest

from server.tuner.correction import Outcome, correction
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
