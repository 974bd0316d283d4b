import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.backoff import Backoff


def test_bounds_double_up_to_the_longest_and_start_over_after_a_success() -> None:
    backoff = Backoff(0.5, 3.0, draw=lambda: 1.0)
    assert [backoff.next_delay_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.next_delay_s() == 0.5


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 50))
def test_no_delay_is_negative_or_over_the_longest(draw: float, attempts: int) -> None:
    backoff = Backoff(0.5, 30.0, draw=lambda: draw)
    assert all(0 <= backoff.next_delay_s() <= 30.0 for _ in range(attempts))


def test_the_jitter_is_full() -> None:
    assert Backoff(8.0, 30.0, draw=lambda: 0.25).next_delay_s() == pytest.approx(2.0)
