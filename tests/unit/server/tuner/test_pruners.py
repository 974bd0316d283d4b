"""How many candidates each virtual round leaves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tuner.pruners import PRUNERS, halving


@given(count=st.integers(1, 100), number=st.integers(1, 100), name=st.sampled_from(list(PRUNERS)))
def test_at_least_one_goes_on_and_nobody_is_added(count: int, number: int, name: str) -> None:
    assert 1 <= PRUNERS[name](count, number) <= count


@pytest.mark.parametrize("num_rounds", [4, 8, 16])
def test_each_halving_doubles_the_rounds(num_rounds: int) -> None:
    counts, count = [], 16
    for number in range(1, num_rounds + 1):
        counts.append(count)
        count = halving(count, number)
    spent = [sum(counts[:2]), *(sum(counts[n : 2 * n]) for n in (2, 4, 8) if 2 * n <= num_rounds)]
    # Two rounds of all, then as many passes for half of them, and so on.
    assert spent == [32] + [16] * (len(spent) - 1)
