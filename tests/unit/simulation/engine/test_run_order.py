"""Runs are yielded from front to back, whoever finishes first, and done again once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import TransportError
from simulation.engine.run_order import AHEAD_PER_WORKER, RunOrder


@given(st.integers(0, 30), st.integers(1, 4), st.randoms(use_true_random=False))
def test_results_come_in_order_and_no_more_than_allowed_are_ahead(
    num_runs: int, num_workers: int, chance: object
) -> None:
    order = RunOrder(num_runs, num_workers)
    busy: list[int] = []
    yielded: list[int] = []
    held = 0
    while not order.finished:
        while len(busy) < num_workers and (index := order.take()) is not None:
            busy.append(index)
        assert busy  # else nothing would ever go on
        index = busy.pop(chance.randrange(len(busy)))  # type: ignore[attr-defined]
        order.put(index, index)
        held += 1
        assert held <= AHEAD_PER_WORKER * num_workers
        found = list(order.results())
        held -= len(found)
        yielded += found
    assert yielded == list(range(num_runs))


def test_a_lost_run_is_the_next_one_and_the_second_loss_ends_it() -> None:
    order = RunOrder(3, 2)
    assert (order.take(), order.take()) == (0, 1)
    order.lost(0, "died")
    assert order.take() == 0
    with pytest.raises(TransportError, match="died again"):
        order.lost(0, "died again")
