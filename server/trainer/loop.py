"""Refine weights by SGD with momentum on proxy data, by one process or several alike.

Every rank draws the same global batches, computes its slice of each, and the ranks add up their
gradients, the loss and the wish to stop in one collective a step: all of them take the same steps
and fail at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedge.errors import RefineError
from fedge.params import Layout, Vector
from fedge.rng import stream, stream_seed
from fedge.task import Examples, Task
from fedge.weights import layout_of, read_vector, write_vector
from server.trainer.objectives import OBJECTIVES, Objective
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
    progress: Progress = lambda *_: None,
    should_stop: ShouldStop = lambda: False,
    ranks: Ranks | None = None,
) -> Refinement:
    """Return the weights after ``spec.steps`` steps on the proxy data.

    The ranks are the processes that share each batch; None is this process alone.

    Raises:
        RefineError: no data, stopped, past the deadline, or the loss is no longer finite.
        ConfigError: there is no such objective.
        TransportError: another rank was lost.
    """
    started = time.monotonic()
    team = ranks or Solo()
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_model_seed(spec, team.rank))
        model = _load_model(task, layout, weights)
        step_of = _SharedStep(model, OBJECTIVES[spec.objective](task), proxy, team)
        optimizer = _MomentumSgd(step_of.parameters, spec.learning_rate, spec.momentum)
        for batch in islice(_draw_batches(len(proxy), spec), spec.steps):
            late = time.monotonic() - started > spec.deadline_s
            loss = step_of.compute(batch, cancelled=should_stop(), late=late)
            _check_step(step_of, loss, len(losses), spec)
            optimizer.step()
            losses.append(loss)
            progress(len(losses), spec.steps, loss)
    refined = read_vector(model, layout)
    if not np.isfinite(refined).all():
        raise Diverged(_diverged(spec, "weights are", len(losses)))
    seconds = time.monotonic() - started
    return Refinement(refined, len(losses), seconds, losses[0], losses[-1])


class _SharedStep:
    """Gradients of one global batch, all parameters in one buffer that the ranks add up.

    The buffer ends with the batch's mean loss and the numbers of ranks that want to stop because
    they were cancelled and because they are late.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, proxy: Examples, ranks: Ranks
    ) -> None:
        self.parameters = [each for each in model.parameters() if each.requires_grad]
        self._model = model
        self._objective = objective
        self._proxy = proxy
        self._ranks = ranks
        self._buffer = torch.zeros(sum(each.numel() for each in self.parameters) + 3)
        start = 0
        for each in self.parameters:  # backward adds to a gradient that is already there in place
            each.grad = self._buffer[start : start + each.numel()].view_as(each)
            start += each.numel()

    @property
    def cancelled(self) -> bool:
        """Tell whether any rank was cancelled before this step."""
        return self._buffer[-2].item() > 0

    @property
    def late(self) -> bool:
        """Tell whether any rank was past the deadline before this step."""
        return self._buffer[-1].item() > 0

    def compute(self, batch: npt.NDArray[Any], *, cancelled: bool, late: bool) -> float:
        """Fill the gradients and return the mean loss, of the whole batch on every rank."""
        self._buffer.zero_()
        share = np.array_split(batch, self._ranks.size)[self._ranks.rank]
        if len(share) > 0 and not (cancelled or late):
            examples = self._proxy.subset(share)
            loss = self._losses(examples).sum() / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            self._buffer[-3] = loss.detach()
        self._buffer[-2] = float(cancelled)
        self._buffer[-1] = float(late)
        self._ranks.add_up(self._buffer)
        return float(self._buffer[-3].item())

    def _losses(self, examples: Examples) -> Tensor:
        inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
        return self._objective.losses(self._model, inputs, targets)


class _MomentumSgd:
    """SGD with momentum as torch.optim has it, whose import costs a second or more."""

    def __init__(self, parameters: list[nn.Parameter], rate: float, momentum: float) -> None:
        self._parameters = parameters
        self._speeds = [torch.zeros_like(each) for each in parameters]
        self._rate = rate
        self._momentum = momentum

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters along their gradients."""
        for each, speed in zip(self._parameters, self._speeds, strict=True):
            assert each.grad is not None
            speed.mul_(self._momentum).add_(each.grad)
            each.sub_(speed, alpha=self._rate)


def _load_model(task: Task, layout: Layout, weights: Vector) -> nn.Module:
    model = task.build_model()
    if layout_of(model).digest != layout.digest:
        raise RefineError(f"the weights are not of task {task.name}: its model has another layout")
    write_vector(model, layout, weights)
    return model.train()


def _draw_batches(num_examples: int, spec: RefineSpec) -> Iterator[npt.NDArray[Any]]:
    """Yield positions of one batch after the other, endlessly; each pass is shuffled anew."""
    if num_examples == 0:
        raise RefineError("the task has no proxy data to refine on")
    rng = stream(spec.seed, "refine-batches", round=spec.round)
    size = min(spec.batch_size, num_examples)
    while True:
        order = rng.permutation(num_examples)
        for start in range(0, num_examples - size + 1, size):
            yield order[start : start + size]


def _model_seed(spec: RefineSpec, rank: int) -> int:
    return stream_seed(spec.seed, "refine-dropout", round=spec.round, client=rank)


def _check_step(step: _SharedStep, loss: float, num_done: int, spec: RefineSpec) -> None:
    """Refuse to go on; every rank sees the same numbers and so decides the same."""
    if step.cancelled:
        raise RefineError(f"the refinement was cancelled after {num_done} of {spec.steps} steps")
    if step.late:
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
