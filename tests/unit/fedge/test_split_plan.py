"""Split plans: even stages, and what is no plan."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import TaskError
from fedge.split_plan import SplitPlan, split_plan_of
from fedge.tasks.charlm import CharLm
from fedge.tasks.digits import Digits


@given(
    num_blocks=st.integers(1, 12),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    num_stages=st.integers(1, 12),
)
def test_stages_keep_the_order_and_differ_by_one_block(
    num_blocks: int, before: int, after: int, num_stages: int
) -> None:
    blocks = tuple(f"block.{n}" for n in range(num_blocks))
    head = tuple(f"tail.{n}" for n in range(after))
    plan = SplitPlan((*(f"start.{n}" for n in range(before)), *blocks, *head), "block.*")
    if num_stages > num_blocks:
        with pytest.raises(TaskError, match=f"cannot make {num_stages} pipeline stages"):
            plan.stages(num_stages)
        return
    stages = plan.stages(num_stages)
    assert tuple(name for stage in stages for name in stage) == plan.chain
    counts = [len(set(stage) & set(blocks)) for stage in stages]
    assert len(counts) == num_stages
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


@pytest.mark.parametrize(
    "fields",
    [
        {"chain": ("a", "a"), "blocks": "a"},
        {"chain": ("a", "b"), "blocks": "c"},
        {"chain": (), "blocks": "*"},
        {"chain": ("a",), "blocks": "a", "column": ("a",)},
        {"chain": ("a",), "blocks": "a", "tensor_units": 0},
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="split plan"):
        SplitPlan(**fields)


def test_a_task_may_have_a_plan() -> None:
    assert split_plan_of(Digits()) is None
    assert split_plan_of(CharLm()) == CharLm().split_plan()

    class Wrong(Digits):
        def split_plan(self) -> str:
            return "in halves"

    with pytest.raises(TaskError, match="returned a str"):
        split_plan_of(Wrong())
