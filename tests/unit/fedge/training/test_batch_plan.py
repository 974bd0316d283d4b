"""The draws of a group of clients are those that each makes alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import TaskError
from fedge.params import Layout
from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.training.batch_plan import plan_batches
from fedge.training.cohort_contracts import Batches, CohortMember

LAYOUT = Layout(("w",), ((3,),))
HYPER = Hyperparameters(batch_size=4, local_epochs=2)


def _examples(size: int) -> Examples:
    return Examples(np.ones((size, 3), np.float32), np.zeros(size, np.int64))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 6),
)
def test_each_member_draws_as_it_would_alone(
    sizes: list[int], epochs: int, batch_size: int
) -> None:
    hyper = replace(HYPER, local_epochs=epochs, batch_size=batch_size)
    members = [CohortMember(_examples(size), Draws.seeded(seed)) for seed, size in enumerate(sizes)]
    for seed, (size, planned) in enumerate(
        zip(sizes, plan_batches(members, LAYOUT, hyper, 3), strict=True)
    ):
        assert isinstance(planned, Batches)
        draws = Draws.seeded(seed)
        assert planned.seed == draws.seed()
        alone = [
            step.tolist()
            for _ in range(epochs)
            for step in torch.split(draws.permutation(size), batch_size)
        ]
        assert [step.tolist() for step in planned.steps] == alone


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (_examples(0), "no examples"),
        (Examples(np.full((2, 3), np.nan, np.float32), np.zeros(2, np.int64)), "non-finite"),
        (Examples(np.full((2, 3), "a", object), np.zeros(2, np.int64)), "training failed"),
    ],
)
def test_a_member_that_cannot_be_planned_harms_no_other(examples: Examples, words: str) -> None:
    good = CohortMember(_examples(5), Draws.seeded(1))
    bad = CohortMember(examples, Draws.seeded(2))
    first, broken, last = plan_batches([good, bad, replace(good)], LAYOUT, HYPER, 3)
    assert isinstance(first, Batches)
    assert isinstance(last, Batches)
    assert isinstance(broken, TaskError)
    assert words in str(broken)


def test_values_whose_squares_overflow_are_finite() -> None:
    member = CohortMember(
        Examples(np.full((2, 3), 3e38, np.float32), np.zeros(2, np.int64)), Draws.seeded(1)
    )
    (planned,) = plan_batches([member], LAYOUT, HYPER, 3)
    assert isinstance(planned, Batches)
