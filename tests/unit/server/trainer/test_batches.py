"""Order of a refinement's batches, and how rows travel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.trainer.batches import Aims, draw_batches, prefetched
from server.trainer.spec import RefineSpec


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 5))
def test_each_pass_shows_an_example_at_most_once(num_examples: int, size: int, round: int) -> None:
    batches = draw_batches(num_examples, RefineSpec(batch_size=size, round=round))
    per_pass = num_examples // min(size, num_examples)
    seen = np.concatenate([next(batches) for _ in range(per_pass)])
    assert len(np.unique(seen)) == len(seen) == per_pass * min(size, num_examples)
    assert set(seen) <= set(range(num_examples))


@pytest.mark.parametrize("device", ["cpu", "meta"])  # a thread gathers for what is no CPU
def test_gathered_batches_come_in_order_however_they_are_fetched(device: str) -> None:
    batches = iter(range(4))
    with prefetched(batches, lambda each: each + 10, torch.device(device)) as found:
        assert [next(found) for _ in range(4)] == [10, 11, 12, 13]


@given(st.booleans(), st.booleans())
def test_what_a_loss_needs_is_unpacked_as_it_was_packed(teacher: bool, labelled: bool) -> None:
    aims = Aims(
        torch.zeros(2),
        torch.ones(2, 3) if teacher else None,
        torch.tensor([True, False]) if labelled else None,
    )
    found = aims.with_tensors(aims.tensors())
    assert [found.targets, found.teacher, found.labelled] == [
        aims.targets,
        aims.teacher,
        aims.labelled,
    ]
