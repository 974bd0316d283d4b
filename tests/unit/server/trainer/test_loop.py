import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedge.errors import ConfigError, RefineError
from fedge.params import Layout, Vector
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from fedge.weights import write_vector
from server.trainer.loop import _draw_batches, refine
from server.trainer.proxy_split import split_proxy
from server.trainer.ranks import Ranks, Solo
from server.trainer.spec import Diverged, Refinement, RefineSpec
from tests.tiny_task import TinyTask

TASK = TinyTask()
TRAINER = LocalTrainer(TASK)
PROXY = TASK.cloud_data().proxy


def _refine(
    spec: RefineSpec, *, task: TinyTask = TASK, weights: Vector | None = None, **options: object
) -> Refinement:
    start = TRAINER.initial_weights(0) if weights is None else weights
    return refine(task, TRAINER.layout, start, spec, proxy=PROXY, **options)  # type: ignore[arg-type]


def test_it_equals_plain_torch_optim() -> None:
    spec = RefineSpec(learning_rate=0.1, momentum=0.8, batch_size=7, steps=12, seed=3, round=2)
    model = TASK.build_model()
    write_vector(model, TRAINER.layout, TRAINER.initial_weights(0))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=spec.learning_rate, momentum=spec.momentum)
    losses = []
    for batch, _ in zip(_draw_batches(len(PROXY), spec), range(spec.steps), strict=False):
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
    task = TinyTask(dropout=0.5)
    state = torch.get_rng_state()
    first, again = (_refine(RefineSpec(steps=4), task=task) for _ in range(2))
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
    layout = Layout(("w",), ((3,),))
    with pytest.raises(RefineError, match="not of task tiny"):
        refine(TASK, layout, np.zeros(3, np.float32), RefineSpec(), proxy=PROXY)


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
    start = TRAINER.initial_weights(0)
    found = [refine(TASK, TRAINER.layout, start, spec, proxy=each) for each in (PROXY, other)]
    np.testing.assert_array_equal(found[0].weights, found[1].weights)
    whole = refine(TASK, TRAINER.layout, start, replace(spec, held_out=0), proxy=other)
    assert not np.allclose(whole.weights, found[0].weights)


def test_without_proxy_data_there_is_an_error() -> None:
    empty = PROXY.subset(np.zeros(0, np.int64))
    with pytest.raises(RefineError, match="no proxy data"):
        refine(TASK, TRAINER.layout, TRAINER.initial_weights(0), RefineSpec(), proxy=empty)


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 5))
def test_each_pass_shows_an_example_at_most_once(num_examples: int, size: int, round: int) -> None:
    batches = _draw_batches(num_examples, RefineSpec(batch_size=size, round=round))
    per_pass = num_examples // min(size, num_examples)
    seen = np.concatenate([next(batches) for _ in range(per_pass)])
    assert len(np.unique(seen)) == len(seen) == per_pass * min(size, num_examples)
    assert set(seen) <= set(range(num_examples))


class ThreadRanks(Solo):
    """Ranks that are threads of this process and add up in plain memory."""

    def __init__(self, rank: int, size: int, meet: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.rank = rank
        self.size = size
        self._meet = meet

    def add_up(self, buffer: Tensor) -> None:
        buffer.copy_(self._meet(self.rank, buffer))


def _refine_on_threads(
    spec: RefineSpec, size: int, should_stop: Callable[[int], bool] = lambda _: False
) -> list[Refinement | Exception]:
    parts: dict[int, Tensor] = {}
    barrier = threading.Barrier(size, timeout=30)

    def meet(rank: int, buffer: Tensor) -> Tensor:
        parts[rank] = buffer.clone()
        barrier.wait()
        total = torch.stack([parts[each] for each in range(size)]).sum(dim=0)
        barrier.wait()
        return total

    start = TRAINER.initial_weights(0)

    def run(rank: int) -> Refinement | Exception:
        ranks: Ranks = ThreadRanks(rank, size, meet)
        try:
            return _refine(spec, weights=start, ranks=ranks, should_stop=lambda: should_stop(rank))
        except RefineError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize(("batch_size", "size"), [(8, 2), (7, 2), (7, 3), (1, 2)])
def test_ranks_that_share_each_batch_equal_one_process(batch_size: int, size: int) -> None:
    spec = RefineSpec(learning_rate=0.1, batch_size=batch_size, steps=15)
    alone = _refine(spec)
    for shared in _refine_on_threads(spec, size):
        assert isinstance(shared, Refinement)
        np.testing.assert_allclose(shared.weights, alone.weights, atol=1e-5)
        assert shared.loss_last == pytest.approx(alone.loss_last, abs=1e-5)


def test_when_one_rank_has_spent_its_budget_all_end_well_at_the_same_step() -> None:
    spec = RefineSpec(learning_rate=0.1, steps=50_000, budget_s=0.2)
    ended = _refine_on_threads(spec, 2)
    counts = [each.num_steps for each in ended if isinstance(each, Refinement)]
    assert len(counts) == 2
    assert counts[0] == counts[1] < 50_000


def test_when_one_rank_is_told_to_stop_all_fail_at_the_same_step() -> None:
    calls = iter(range(100))
    ended = _refine_on_threads(
        RefineSpec(steps=50), 2, should_stop=lambda rank: rank == 0 and next(calls) == 5
    )
    assert [str(each) for each in ended] == ["the refinement was cancelled after 5 of 50 steps"] * 2
