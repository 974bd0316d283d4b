"""Virtual time passes only where it is told to."""

import math

import pytest

from fedge.clock import Clock, SystemClock
from simulation.clock import VirtualClock


def test_sleeping_and_advancing_add_up() -> None:
    clock = VirtualClock(10.0)
    clock.sleep(2.5)
    clock.advance_to(20.0)
    clock.sleep(0)
    assert clock.monotonic() == 20.0


def test_time_never_goes_back() -> None:
    clock = VirtualClock(5.0)
    clock.advance_to(3.0)
    assert clock.monotonic() == 5.0


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_impossible_times_are_refused(seconds: float) -> None:
    clock = VirtualClock(5.0)
    with pytest.raises(ValueError, match="finite seconds"):
        clock.sleep(seconds)
    with pytest.raises(ValueError, match="finite seconds"):
        clock.advance_to(seconds)
    assert clock.monotonic() == 5.0


def test_both_clocks_serve_where_one_is_asked_for() -> None:
    clocks: list[Clock] = [SystemClock(), VirtualClock()]
    for clock in clocks:
        before = clock.monotonic()
        clock.sleep(0)
        assert clock.monotonic() >= before
