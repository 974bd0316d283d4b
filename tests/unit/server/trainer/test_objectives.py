"""Objectives against the same arithmetic by hand."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedge.errors import RefineError
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from fedge.weights import write_vector
from server.trainer.alone import refining_alone
from server.trainer.batches import Aims, draw_batches
from server.trainer.loop import Control
from server.trainer.objectives import OBJECTIVES, Material
from server.trainer.refining import ProxyData
from server.trainer.spec import Refinement, RefineSpec
from tests.tiny_task import NUM_CLASSES, NUM_INPUTS, TinyTask

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
PROXY = TASK.cloud_data().proxy
START = TRAINER.initial_weights(0)


def _run(spec: RefineSpec, task: TinyTask = TASK, **options: Any) -> Refinement:
    return refining_alone(task, ProxyData(PROXY, **options)).run(START, spec)


def test_anchored_equals_gradient_descent_on_the_loss_with_its_proximal_term() -> None:
    spec = RefineSpec(objective="anchored", mu=0.7, learning_rate=0.1, momentum=0.0, steps=9)
    model = TASK.build_model()
    write_vector(model, TRAINER.layout, START)
    anchors = [each.detach().clone() for each in model.parameters()]
    for batch, _ in zip(draw_batches(len(PROXY), spec), range(spec.steps), strict=False):
        part = PROXY.subset(batch)
        loss = TASK.loss(model(torch.from_numpy(part.inputs)), torch.from_numpy(part.targets))
        pairs = zip(model.parameters(), anchors, strict=True)
        distance = torch.stack([((each - anchor) ** 2).sum() for each, anchor in pairs]).sum()
        gradients = torch.autograd.grad(
            loss.mean() + spec.mu / 2 * distance, list(model.parameters())
        )
        with torch.no_grad():
            for each, gradient in zip(model.parameters(), gradients, strict=True):
                each.sub_(spec.learning_rate * gradient)
    expected = torch.cat([each.detach().flatten() for each in model.parameters()])
    np.testing.assert_allclose(_run(spec).weights, expected, atol=1e-6)


def test_a_strong_pull_keeps_the_refinement_near_the_aggregate() -> None:
    spec = RefineSpec(learning_rate=0.1, steps=40, momentum=0.0)
    free = np.linalg.norm(_run(spec).weights - START)
    held = np.linalg.norm(_run(replace(spec, objective="anchored", mu=5.0)).weights - START)
    assert held < free / 4


@dataclass(frozen=True)
class Taught(TinyTask):
    """Its teacher is sure of one class whatever it sees."""

    taught: int = 2

    def build_teacher(self) -> nn.Module:
        teacher = nn.Linear(NUM_INPUTS, NUM_CLASSES)
        with torch.no_grad():
            teacher.weight.zero_()
            teacher.bias.copy_(10 * torch.eye(NUM_CLASSES)[self.taught])
        return teacher


def test_distill_learns_from_the_teacher_on_unlabelled_inputs() -> None:
    unlabelled = np.random.default_rng(0).normal(size=(60, NUM_INPUTS)).astype(np.float32)
    spec = RefineSpec(
        objective="distill", distill_weight=20.0, learning_rate=0.02, steps=150, temperature=1.0
    )
    model = TASK.build_model()
    refined = _run(spec, Taught(), unlabelled=unlabelled).weights
    write_vector(model, TRAINER.layout, refined)
    assert (model(torch.from_numpy(unlabelled)).argmax(dim=1) == 2).all()


def test_distilled_from_the_aggregate_it_forgets_less_than_fine_tuned() -> None:
    spec = RefineSpec(learning_rate=0.2, steps=60)
    kept = _run(replace(spec, objective="distill", distill_weight=10.0)).weights
    free = _run(spec).weights
    model = TASK.build_model()

    def outputs(weights: Any) -> Tensor:
        write_vector(model, TRAINER.layout, weights)
        with torch.no_grad():
            found: Tensor = model(torch.from_numpy(PROXY.inputs)).softmax(dim=1)
        return found

    before = outputs(START)
    assert (outputs(kept) - before).abs().mean() < (outputs(free) - before).abs().mean() / 2


def test_a_distilled_row_has_task_loss_and_divergence_and_an_unlabelled_one_divergence_alone() -> (
    None
):
    objective = OBJECTIVES["distill"](TASK, RefineSpec(distill_weight=3.0, temperature=2.0))
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(2, 4, 3))
    targets = np.array([0, 2, 0, 0])
    labelled = np.array([True, True, False, False])

    def log_softmax(values: Any) -> Any:
        return values - np.log(np.exp(values).sum(axis=1, keepdims=True))

    p, q = log_softmax(theirs / 2), log_softmax(ours / 2)
    divergence = 4 * (np.exp(p) * (p - q)).sum(axis=1)
    own = np.where(labelled, -log_softmax(ours)[np.arange(4), targets], 0)
    aims = Aims(*(torch.from_numpy(each) for each in (targets, theirs, labelled)))
    found = objective.losses(torch.from_numpy(ours), aims)
    np.testing.assert_allclose(found, own + 3 * divergence, rtol=1e-6)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_losses_of_part_of_a_batch_are_part_of_its_losses(name: str) -> None:
    objective = OBJECTIVES[name](TASK, RefineSpec())
    model = TASK.build_model()
    unlabelled = np.ones((5, NUM_INPUTS), np.float32)
    rows = objective.prepare(Material(PROXY, unlabelled, TASK.build_model, torch.device("cpu")))
    some = [3, 0, len(rows) - 1]
    whole = objective.losses(model(rows.inputs), rows.aims)
    aims = rows.aims.with_tensors(tuple(each[some] for each in rows.aims.tensors()))
    part = objective.losses(model(rows.inputs[some]), aims)
    assert whole.shape == (len(rows),)
    torch.testing.assert_close(part, whole[some])


class Numeric(TinyTask):
    def build_teacher(self) -> nn.Module:
        return nn.Linear(NUM_INPUTS, 1)


class Shaped(TinyTask):
    def build_teacher(self) -> nn.Module:
        return nn.Linear(NUM_INPUTS, NUM_CLASSES + 1)


class Broken(TinyTask):
    def build_teacher(self) -> nn.Module:
        teacher = nn.Linear(NUM_INPUTS, NUM_CLASSES)
        nn.init.constant_(teacher.bias, float("nan"))
        return teacher


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Numeric(), "distill compares classes"),
        (Shaped(), r"teacher's outputs have the shape \(4,\), the model's \(3,\)"),
        (Broken(), "teacher's outputs are not finite"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_any_step(task: TinyTask, text: str) -> None:
    told: list[object] = []
    with pytest.raises(RefineError, match=text):
        refining_alone(task).run(
            START,
            RefineSpec(objective="distill"),
            Control(progress=lambda *step: told.append(step)),
        )
    assert told == []


def test_inputs_that_must_not_be_written_to_are_copied() -> None:
    frozen = Examples(PROXY.inputs.copy(), PROXY.targets.copy())
    frozen.inputs.flags.writeable = False
    spec = RefineSpec(steps=3)
    found = refining_alone(TASK, ProxyData(frozen)).run(START, spec)
    np.testing.assert_array_equal(found.weights, _run(spec).weights)
