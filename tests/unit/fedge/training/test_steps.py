"""Steps of a client, held as one tensor."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedge.training.steps import Steps


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6))
def test_joined_steps_come_apart_as_they_were(steps: list[list[int]]) -> None:
    joined = Steps.of([torch.tensor(step, dtype=torch.int64) for step in steps])
    assert len(joined) == len(steps)
    assert [step.tolist() for step in joined] == steps
    assert [step.tolist() for step in joined[1:3]] == steps[1:3]
    assert joined.lengths.tolist() == [len(step) for step in steps]


def test_a_step_is_cut_from_the_order_by_the_lengths() -> None:
    steps = Steps(torch.tensor([4, 0, 2, 3, 1]), np.array([2, 2, 1]))
    assert [step.tolist() for step in steps] == [[4, 0], [2, 3], [1]]
