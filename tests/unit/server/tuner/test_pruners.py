"""How many candidates each virtual round leaves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tuner.pruners import PRUNERS, halving


@given(
    count=st.integers(1, 100),
    number=st.integers(1, 100),
    num_rounds=st.integers(1, 100),
    name=st.sampled_from(list(PRUNERS)),
)
def test_at_least_one_goes_on_and_nobody_is_added(
    count: int, number: int, num_rounds: int, name: str
) -> None:
    assert 1 <= PRUNERS[name](count, number, num_rounds) <= count


@pytest.mark.parametrize(
    ("num_rounds", "cuts"), [(1, []), (3, [2]), (4, [2]), (8, [2, 4]), (12, [3, 6]), (7, [2, 4])]
)
def test_half_go_after_a_quarter_and_after_half_of_the_rounds(
    num_rounds: int, cuts: list[int]
) -> None:
    rounds = range(1, num_rounds + 1)
    assert [number for number in rounds if halving(8, number, num_rounds) == 4] == cuts
    assert all(halving(8, number, num_rounds) in (4, 8) for number in rounds)
