"""A trial's arithmetic, on a clock of our own."""

import pytest

from server.canary import Trial, is_canary
from server.settings import CanaryConfig

NODES = [f"node-{number}" for number in range(2000)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def trial(num_told: int, tolerance: float = 0.2) -> tuple[Trial, Clock]:
    clock = Clock()
    config = CanaryConfig(fraction=0.1, trial_s=60.0, tolerance=tolerance)
    made = Trial("v", 3, config, clock)
    for node in NODES[:num_told]:
        made.told(node)
    return made, clock


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_the_wanted_share_is_drawn_stably_and_anew_for_each_round(fraction: float) -> None:
    drawn = [{n for n in NODES if is_canary(n, round, fraction)} for round in (1, 2)]
    for group in drawn:
        assert abs(len(group) / len(NODES) - fraction) < 0.03
    assert drawn[0] == {n for n in NODES if is_canary(n, 1, fraction)}
    assert len(drawn[0] & drawn[1]) < 2 * fraction * len(drawn[0])


def test_all_or_none_can_be_drawn() -> None:
    assert all(is_canary(node, 1, 1.0) for node in NODES)
    assert not any(is_canary(node, 1, 0.0) for node in NODES)


def test_a_version_that_nobody_refuses_is_promoted_when_its_time_is_over() -> None:
    made, clock = trial(num_told=10)
    for node in NODES[:4]:
        made.report(node, "")
    clock.now = 59.0
    assert made.verdict() is None
    clock.now = 60.0
    verdict = made.verdict()
    assert verdict is not None
    assert (verdict.promoted, verdict.served, verdict.refused) == (True, 4, 0)


def test_a_version_that_enough_refuse_is_withdrawn_at_once() -> None:
    made, _ = trial(num_told=10)
    for node in NODES[:2]:
        made.report(node, "self-test")
    assert made.verdict() is None
    made.report(NODES[2], "it crashed")
    verdict = made.verdict()
    assert verdict is not None
    assert (verdict.promoted, verdict.refused) == (False, 3)
    assert verdict.reasons == ("self-test", "self-test", "it crashed")


def test_one_broken_device_of_many_does_not_hold_a_version_back() -> None:
    made, clock = trial(num_told=10)
    made.report(NODES[0], "disk full")
    for node in NODES[1:8]:
        made.report(node, "")
    clock.now = 60.0
    verdict = made.verdict()
    assert verdict is not None
    assert verdict.promoted


def test_at_the_end_those_who_answered_decide() -> None:
    made, clock = trial(num_told=100)
    made.report(NODES[0], "self-test")
    made.report(NODES[1], "")
    assert made.verdict() is None
    clock.now = 60.0
    verdict = made.verdict()
    assert verdict is not None
    assert not verdict.promoted


def test_the_last_word_of_a_device_counts() -> None:
    made, _ = trial(num_told=1)
    made.report(NODES[0], "")
    assert made.verdict() is None
    made.report(NODES[0], "a drop")
    verdict = made.verdict()
    assert verdict is not None
    assert (verdict.served, verdict.refused) == (0, 1)


def test_who_was_not_sent_the_version_is_not_heard() -> None:
    made, clock = trial(num_told=1)
    for node in NODES[1:50]:
        made.report(node, "I say so")
    assert made.verdict() is None
    clock.now = 60.0
    verdict = made.verdict()
    assert verdict is not None
    assert (verdict.promoted, verdict.served, verdict.refused) == (True, 0, 0)
