"""Stages of a model: their names, what they compute together, and plans of another model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedge.errors import TaskError
from fedge.split_plan import SplitPlan
from fedge.tasks.charlm import CharLm
from server.trainer.parallel.chain import Stage, check_plan, has_tied_tensors

TASK = CharLm(width=8, depth=3, heads=2, context=5)
PLAN = TASK.split_plan()


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_stages_one_after_the_other_are_the_model_and_keep_its_names(num_stages: int) -> None:
    model = TASK.build_model()
    codes = torch.arange(10).view(2, 5)
    expected = model(codes)
    stages = [Stage(model, names) for names in PLAN.stages(num_stages)]
    x = codes
    for stage in stages:
        x = stage(x)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)
    assert [name for stage in stages for name in stage.state_dict()] == list(model.state_dict())


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (replace(PLAN, chain=(*PLAN.chain, "tail")), "no module 'tail'"),
        (replace(PLAN, chain=PLAN.chain[1:]), r"'embed.position' belongs to 0 modules"),
        (replace(PLAN, chain=(*PLAN.chain, "head.norm")), r"'head.norm.weight' belongs to 2"),
        (replace(PLAN, row=("blocks.*.mlp",)), r"'blocks.0.mlp' is no Linear layer"),
        (replace(PLAN, column=("nowhere",), row=("nowhere",)), "no layer is like"),
    ],
)
def test_a_plan_of_another_model_is_refused(plan: SplitPlan, text: str) -> None:
    check_plan(PLAN, TASK.build_model())
    with pytest.raises(TaskError, match=text):
        check_plan(plan, TASK.build_model())


def test_tied_tensors_are_seen() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert not has_tied_tensors(model)
    model[1].weight = model[0].weight
    assert has_tied_tensors(model)
