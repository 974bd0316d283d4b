import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedge.errors import ConfigError, RefineError
from fedge.params import Vector
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from fedge.weights import write_vector
from server.trainer.alone import refining_alone
from server.trainer.batches import draw_batches
from server.trainer.loop import Control
from server.trainer.proxy_split import split_proxy
from server.trainer.refining import ProxyData
from server.trainer.spec import Diverged, Refinement, RefineSpec
from tests.tiny_task import TinyTask

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
PROXY = TASK.cloud_data().proxy


def _refine(
    spec: RefineSpec,
    *,
    task: TinyTask = TASK,
    weights: Vector | None = None,
    proxy: Examples = PROXY,
    **control: Any,
) -> Refinement:
    start = TRAINER.initial_weights(0) if weights is None else weights
    return refining_alone(task, ProxyData(proxy)).run(start, spec, Control(**control))


def test_it_equals_plain_torch_optim() -> None:
    spec = RefineSpec(learning_rate=0.1, momentum=0.8, batch_size=7, steps=12, seed=3, round=2)
    model = TASK.build_model()
    write_vector(model, TRAINER.layout, TRAINER.initial_weights(0))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=spec.learning_rate, momentum=spec.momentum)
    losses = []
    for batch, _ in zip(draw_batches(len(PROXY), spec), range(spec.steps), strict=False):
        part = PROXY.subset(batch)
        outputs = model(torch.from_numpy(part.inputs))
        loss = TASK.loss(outputs, torch.from_numpy(part.targets)).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expected = np.concatenate([each.detach().numpy().ravel() for each in parameters])
    refinement = _refine(spec)
    np.testing.assert_allclose(refinement.weights, expected, atol=1e-6)
    assert refinement.num_steps == 12
    assert refinement.loss_first == pytest.approx(losses[0], abs=1e-6)
    assert refinement.loss_last == pytest.approx(losses[-1], abs=1e-6)


def test_equal_specs_repeat_and_another_round_draws_other_batches() -> None:
    spec = RefineSpec(steps=5)
    first, again = _refine(spec), _refine(spec)
    other = _refine(RefineSpec(steps=5, round=1))
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, other.weights)


def test_it_learns_and_leaves_the_given_weights_alone() -> None:
    start = TRAINER.initial_weights(0)
    kept = start.copy()
    refinement = _refine(RefineSpec(learning_rate=0.2, steps=60), weights=start)
    np.testing.assert_array_equal(start, kept)
    before = TRAINER.losses(start, PROXY).mean()
    assert TRAINER.losses(refinement.weights, PROXY).mean() < before / 2


def test_dropout_repeats_and_draws_nothing_from_the_global_generator() -> None:
    refining = refining_alone(TinyTask(dropout=0.5))
    start, state = TRAINER.initial_weights(0), torch.get_rng_state()
    first, again = (refining.run(start, RefineSpec(steps=4)) for _ in range(2))
    torch.testing.assert_close(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.weights, again.weights)
    assert not np.array_equal(first.weights, _refine(RefineSpec(steps=4)).weights)


def test_progress_is_told_after_each_step() -> None:
    told: list[tuple[int, int, float]] = []
    refinement = _refine(RefineSpec(steps=3), progress=lambda *step: told.append(step))
    assert [each[:2] for each in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][2] == refinement.loss_last


def test_it_stops_at_the_next_step_when_told_to() -> None:
    steps: list[int] = []
    with pytest.raises(RefineError, match="cancelled after 4 of 100 steps"):
        _refine(
            RefineSpec(steps=100),
            progress=lambda step, *_: steps.append(step),
            should_stop=lambda: len(steps) == 4,
        )
    assert steps == [1, 2, 3, 4]


def test_a_passed_deadline_says_how_far_it_came() -> None:
    task = TinyTask(loss_s=0.05)
    with pytest.raises(RefineError, match=r"deadline of 0\.12 s passed after [123] of 100 steps"):
        _refine(RefineSpec(steps=100, deadline_s=0.12), task=task)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_learning_rate() -> None:
    with pytest.raises(Diverged, match=r"not finite after .* steps: lower refine\.learning_rate"):
        _refine(RefineSpec(learning_rate=1e38, steps=10))


def test_weights_that_are_not_finite_after_the_last_step_are_an_error() -> None:
    weights = TRAINER.initial_weights(0) * np.float32(3e38)
    weights[np.isinf(weights)] = np.float32(3e38)
    with pytest.raises(Diverged, match="not finite"):
        _refine(RefineSpec(learning_rate=1e38, steps=1), weights=weights)


def test_an_unknown_objective_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no refinement objective is called 'x'.*fine-tune"):
        _refine(RefineSpec(objective="x"))


def test_weights_of_another_model_are_an_error() -> None:
    with pytest.raises(RefineError, match="3 weights are not of task tiny"):
        _refine(RefineSpec(), weights=np.zeros(3, np.float32))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_before_any_step(value: float) -> None:
    weights = TRAINER.initial_weights(0)
    weights[2] = value
    told: list[object] = []
    with pytest.raises(RefineError, match="weights to refine are not finite"):
        _refine(RefineSpec(), weights=weights, progress=lambda *step: told.append(step))
    assert told == []


def test_the_budget_ends_it_well_with_the_steps_it_has() -> None:
    task = TinyTask(loss_s=0.02)
    spec = RefineSpec(steps=10_000, budget_s=0.1)
    refinement = _refine(spec, task=task)
    assert 1 <= refinement.num_steps <= 6
    same = _refine(RefineSpec(steps=refinement.num_steps))
    np.testing.assert_array_equal(refinement.weights, same.weights)


def test_a_budget_that_is_spent_before_the_first_step_still_takes_one() -> None:
    assert _refine(RefineSpec(steps=10, budget_s=1e-9)).num_steps == 1


def test_what_is_held_out_changes_nothing() -> None:
    spec = RefineSpec(steps=8, held_out=0.5, seed=6)
    _, held_out = split_proxy(PROXY, 6, 0.5)
    spoilt = PROXY.inputs.copy()
    for row in held_out.inputs:
        spoilt[(spoilt == row).all(axis=1)] = 1e6
    other = Examples(spoilt, PROXY.targets)
    found = [_refine(spec, proxy=each) for each in (PROXY, other)]
    np.testing.assert_array_equal(found[0].weights, found[1].weights)
    whole = _refine(replace(spec, held_out=0), proxy=other)
    assert not np.allclose(whole.weights, found[0].weights)


def test_without_proxy_data_there_is_an_error() -> None:
    empty = PROXY.subset(np.zeros(0, np.int64))
    with pytest.raises(RefineError, match="no proxy data"):
        _refine(RefineSpec(), proxy=empty)
