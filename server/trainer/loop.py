"""Refine weights on proxy data, by one process or several alike.

Every rank draws the same global batches, computes its slice of each, and the ranks add up their
gradients, the loss and the wish to stop in one collective a step: all of them take the same steps
and fail at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedge.errors import RefineError
from fedge.params import Layout, Vector
from fedge.rng import stream, stream_seed
from fedge.task import Examples, Task
from fedge.weights import layout_of, read_vector, write_vector
from server.trainer.objectives import OBJECTIVES, Batch, Objective
from server.trainer.optimizers import OPTIMIZERS
from server.trainer.proxy_split import split_proxy
from server.trainer.ranks import Ranks, Solo
from server.trainer.spec import Diverged, Refinement
from server.trainer.spec import RefineSpec as RefineSpec

Progress = Callable[[int, int, float], None]
"""Called after each step with step, number of steps and the batch's mean loss."""

ShouldStop = Callable[[], bool]


def refine(
    task: Task,
    layout: Layout,
    weights: Vector,
    spec: RefineSpec,
    *,
    proxy: Examples,
    unlabelled: npt.NDArray[Any] | None = None,
    progress: Progress = lambda *_: None,
    should_stop: ShouldStop = lambda: False,
    ranks: Ranks | None = None,
) -> Refinement:
    """Return the weights after ``spec.steps`` steps on the proxy data, or after the budget.

    The ranks are the processes that share each batch; None is this process alone.

    Raises:
        RefineError: the weights or data cannot be used, it was stopped or is past the deadline,
            or the loss is no longer finite.
        ConfigError: there is no such objective or optimizer.
        TransportError: another rank was lost.
    """
    started = time.monotonic()
    team = ranks or Solo()
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_model_seed(spec, team.rank))
        make_objective, make_optimizer = OBJECTIVES[spec.objective], OPTIMIZERS[spec.optimizer]
        model = _load_model(task, layout, weights)
        objective = make_objective(task, spec)
        rows = _prepare(objective, model, spec, proxy, unlabelled)
        step_of = _SharedStep(model, objective, rows, team)
        optimizer = make_optimizer(step_of.parameters, spec)
        for batch in islice(_draw_batches(len(rows), spec), spec.steps):
            stop = _StopSigns.at(time.monotonic() - started, spec, len(losses), should_stop())
            loss = step_of.compute(batch, stop)
            _check_step(step_of.stop, loss, len(losses), spec)
            if step_of.stop.spent:
                break
            optimizer.step()
            losses.append(loss)
            progress(len(losses), spec.steps, loss)
    refined = read_vector(model, layout)
    if not np.isfinite(refined).all():
        raise Diverged(_diverged(spec, "weights are", len(losses)))
    seconds = time.monotonic() - started
    return Refinement(refined, len(losses), seconds, losses[0], losses[-1])


@dataclass(frozen=True)
class _StopSigns:
    """Why a step is the end: the caller left, the deadline passed, or the budget is spent."""

    cancelled: bool
    late: bool
    spent: bool

    @staticmethod
    def at(seconds: float, spec: RefineSpec, num_done: int, cancelled: bool) -> _StopSigns:
        spent = num_done > 0 and 0 < spec.budget_s < seconds
        return _StopSigns(cancelled, seconds > spec.deadline_s, spent)

    def __bool__(self) -> bool:
        return self.cancelled or self.late or self.spent


class _SharedStep:
    """Gradients of one global batch, all parameters in one buffer that the ranks add up.

    The buffer ends with the batch's mean loss and the numbers of ranks that see each stop sign.

    Attributes:
        parameters: those that are trained.
    """

    def __init__(self, model: nn.Module, objective: Objective, rows: Batch, ranks: Ranks) -> None:
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self._model = model
        self._objective = objective
        self._rows = rows
        self._ranks = ranks
        self._anchors = [each.detach().clone() for each in self.parameters if objective.pull > 0]
        self._buffer = torch.zeros(sum(each.numel() for each in self.parameters) + 4)
        start = 0
        for each in self.parameters:  # backward adds to a gradient that is already there in place
            each.grad = self._buffer[start : start + each.numel()].view_as(each)
            start += each.numel()

    @property
    def stop(self) -> _StopSigns:
        """The stop signs that any rank saw before this step."""
        return _StopSigns(*(number > 0 for number in self._buffer[-3:].tolist()))

    def compute(self, batch: npt.NDArray[Any], stop: _StopSigns) -> float:
        """Fill the gradients and return the mean loss, of the whole batch on every rank."""
        self._buffer.zero_()
        share = np.array_split(batch, self._ranks.size)[self._ranks.rank]
        if len(share) > 0 and not stop:
            rows = self._rows.rows(torch.from_numpy(share))
            losses = self._objective.losses(self._model(rows.inputs), rows)
            loss = losses.sum() / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self._buffer[-4] = loss.detach()
        signs = (stop.cancelled, stop.late, stop.spent)
        self._buffer[-3:] = torch.tensor(signs, dtype=self._buffer.dtype)
        self._ranks.add_up(self._buffer)
        self._pull_back()
        return float(self._buffer[-4].item())

    @torch.no_grad()
    def _pull_back(self) -> None:
        """Add the gradient of the distance from the first weights, where there is a pull."""
        for each, anchor in zip(self.parameters, self._anchors, strict=False):
            assert each.grad is not None
            each.grad.add_(each - anchor, alpha=self._objective.pull)


def _load_model(task: Task, layout: Layout, weights: Vector) -> nn.Module:
    model = task.build_model()
    if layout_of(model).digest != layout.digest or len(weights) != layout.size:
        raise RefineError(f"the weights are not of task {task.name}: its model has another layout")
    if not np.isfinite(weights).all():
        raise RefineError("the weights to refine are not finite")
    write_vector(model, layout, weights)
    return model.train()


def _prepare(
    objective: Objective,
    model: nn.Module,
    spec: RefineSpec,
    proxy: Examples,
    unlabelled: npt.NDArray[Any] | None,
) -> Batch:
    """Return the rows to train on; what is held out is not among them."""
    if len(proxy) == 0:
        raise RefineError("the task has no proxy data to refine on")
    trained_on, _ = split_proxy(proxy, spec.seed, spec.held_out)
    return objective.prepare(model, trained_on, unlabelled)


def _draw_batches(num_examples: int, spec: RefineSpec) -> Iterator[npt.NDArray[Any]]:
    """Yield positions of one batch after the other, endlessly; each pass is shuffled anew."""
    rng = stream(spec.seed, "refine-batches", round=spec.round)
    size = min(spec.batch_size, num_examples)
    while True:
        order = rng.permutation(num_examples)
        for start in range(0, num_examples - size + 1, size):
            yield order[start : start + size]


def _model_seed(spec: RefineSpec, rank: int) -> int:
    return stream_seed(spec.seed, "refine-dropout", round=spec.round, client=rank)


def _check_step(stop: _StopSigns, loss: float, num_done: int, spec: RefineSpec) -> None:
    """Refuse to go on; every rank sees the same numbers and so decides the same."""
    if stop.cancelled:
        raise RefineError(f"the refinement was cancelled after {num_done} of {spec.steps} steps")
    if stop.late:
        raise RefineError(
            f"the refinement's deadline of {spec.deadline_s:g} s passed after {num_done} of "
            f"{spec.steps} steps: raise refine.deadline_s or lower refine.steps"
        )
    if not np.isfinite(loss):
        raise Diverged(_diverged(spec, f"loss ({loss}) is", num_done))


def _diverged(spec: RefineSpec, what: str, num_done: int) -> str:
    return (
        f"the {what} not finite after {num_done} of {spec.steps} steps: lower "
        f"refine.learning_rate (now {spec.learning_rate:g})"
    )
