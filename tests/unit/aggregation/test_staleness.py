from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.staleness import staleness_discount


@pytest.mark.parametrize(("num_rounds", "discount"), [(0, 1.0), (3, 0.5), (99, 0.1)])
def test_the_discount_is_that_of_fedbuff(num_rounds: int, discount: float) -> None:
    assert staleness_discount(num_rounds) == pytest.approx(discount)


@given(st.integers(0, 10_000))
def test_an_older_update_weighs_less_and_always_something(num_rounds: int) -> None:
    assert 0 < staleness_discount(num_rounds + 1) < staleness_discount(num_rounds) <= 1
