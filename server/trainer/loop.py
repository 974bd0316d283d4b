"""Refine weights on proxy data, by one process or several alike.

Every rank draws the same global batches and computes its part of each. Before a step the ranks
add up the signs to stop that each sees, so that all take the same steps and fail at the same step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedge.errors import RefineError
from fedge.params import Vector
from fedge.rng import stream_seed
from fedge.task import Examples, Task
from fedge.weights import build_checked_model, layout_of, write_vector
from server.trainer.batches import Rows, draw_batches, prefetched
from server.trainer.checkpoints import Checkpoints, NoCheckpoints
from server.trainer.objectives import OBJECTIVES, Material, Objective
from server.trainer.optimizers import OPTIMIZERS
from server.trainer.parallel.model import ParallelModel, Placed, Targets
from server.trainer.proxy_split import split_proxy
from server.trainer.ranks import Ranks, Solo, collective_errors
from server.trainer.spec import Cancelled, Diverged, Refinement, RefineSpec
from server.trainer.stop_signs import Signs

Progress = Callable[[int, int, float], None]
"""Called after each step with step, number of steps and the batch's mean loss."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Control:
    """What the caller of a refinement sees and does while it runs."""

    progress: Progress = lambda *_: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class ProxyData:
    """What is refined on: labelled examples, and further inputs ``[N, ...]`` for distillation."""

    proxy: Examples
    unlabelled: npt.NDArray[Any] | None = None


@dataclass
class Refining:
    """Refines with one model, again and again; every rank makes one and calls it alike.

    Attributes:
        model: this rank's part of the task's model.
        ranks: the processes that share the work.
        checkpoints: of refinements that were cut short.
    """

    task: Task
    model: ParallelModel
    data: ProxyData
    ranks: Ranks = field(default_factory=Solo)
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)

    def run(
        self, weights: Vector, spec: RefineSpec, control: Control = Control(), *, key: str = ""
    ) -> Refinement:
        """Return the weights after ``spec.steps`` steps on the proxy data, or after the budget.

        Args:
            key: names the refinement among checkpoints: it goes on from one with this key. Empty
                keeps none.

        Raises:
            RefineError: the weights or data cannot be used, it was stopped or is past the
                deadline, or the loss is no longer finite.
            ConfigError: there is no such objective or optimizer.
            TransportError: another rank was lost.
        """
        started = time.monotonic()
        make_objective, make_optimizer = OBJECTIVES[spec.objective], OPTIMIZERS[spec.optimizer]
        self._check_weights(weights)
        objective = make_objective(self.task, spec)
        rows = self._prepare(objective, weights, spec)
        with collective_errors(), _own_random_numbers(self.model.device):
            self.model.load(weights)
            if objective.pull > 0:
                self.model.set_anchor()
            course = _Course(self, objective, rows, spec, control, started)
            course.optimizer = make_optimizer(self.model.parameters(), spec)
            course.resume(key)
            course.train(key)
            refined = self.model.read()
        if not np.isfinite(refined).all():
            raise Diverged(_diverged(spec, "weights are", course.num_done))
        return course.result(refined)

    def _check_weights(self, weights: Vector) -> None:
        if len(weights) != self.model.layout.size:
            raise RefineError(
                f"{len(weights)} weights are not of task {self.task.name}: its model has "
                f"{self.model.layout.size}"
            )
        if not np.isfinite(weights).all():
            raise RefineError("the weights to refine are not finite")

    def _prepare(self, objective: Objective, weights: Vector, spec: RefineSpec) -> Rows:
        """Return the rows to train on; what is held out is not among them."""
        if len(self.data.proxy) == 0:
            raise RefineError("the task has no proxy data to refine on")
        trained_on, _ = split_proxy(self.data.proxy, spec.seed, spec.held_out)

        def aggregate() -> nn.Module:
            model = build_checked_model(self.task)
            write_vector(model, layout_of(model), weights)
            return model

        unlabelled = self.data.unlabelled
        return objective.prepare(Material(trained_on, unlabelled, aggregate, self.model.device))


class _Course:
    """One refinement on its way: its steps, their losses, and what a checkpoint holds of it."""

    optimizer: Any

    def __init__(
        self,
        refining: Refining,
        objective: Objective,
        rows: Rows,
        spec: RefineSpec,
        control: Control,
        started: float,
    ) -> None:
        self._model = refining.model
        self._ranks = refining.ranks
        self._checkpoints = refining.checkpoints
        self._objective = objective
        self._rows = rows
        self._spec = spec
        self._control = control
        self._started = started
        self._earlier_s = 0.0  # what it took until the checkpoint that it goes on from
        self.num_done = 0
        self._losses = (np.nan, np.nan)  # of the first and of the last step

    @property
    def _seconds(self) -> float:
        return self._earlier_s + self._seconds_here

    @property
    def _seconds_here(self) -> float:
        return time.monotonic() - self._started

    def train(self, key: str) -> None:
        """Take the steps that are left."""
        spec = self._spec
        batches = islice(draw_batches(len(self._rows), spec), self.num_done, spec.steps)
        with prefetched(batches, self._gather, self._model.device) as placed:
            for _ in range(self.num_done, spec.steps):
                signs = self._meet(key)
                self._check(signs)
                if signs.spent:
                    break
                if signs.keep:
                    self._checkpoints.save(key, self.num_done, self._state())
                self._step(next(placed))

    def resume(self, key: str) -> None:
        """Go on where an equal refinement was cut short, if there is a checkpoint of it."""
        state = self._state()
        if not key or not self._checkpoints.restore(key, state):
            return
        num_done, first, last, seconds = state["course"].tolist()
        self.num_done, self._losses = int(num_done), (first, last)
        self._earlier_s = seconds
        log.info("going on after step %d of %d", self.num_done, self._spec.steps)

    def result(self, refined: Vector) -> Refinement:
        """Return the refinement with these weights."""
        return Refinement(refined, self.num_done, self._seconds, *self._losses)

    def _state(self) -> dict[str, Any]:
        course = torch.tensor([self.num_done, *self._losses, self._seconds], dtype=torch.float64)
        return {
            "model": self._model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "course": course,
        }

    def _meet(self, key: str) -> Signs:
        """Return the signs that any rank sees before this step."""
        spec = self._spec
        signs = Signs(
            cancelled=self._control.should_stop(),
            late=self._seconds_here > spec.deadline_s,  # an order that is repeated has less
            spent=self.num_done > 0 and 0 < spec.budget_s < self._seconds,
            keep=bool(key) and self.num_done > 0 and self._checkpoints.due(),
        )
        return signs.of_any(self._ranks)

    def _check(self, signs: Signs) -> None:
        spec = self._spec
        if signs.cancelled:
            raise Cancelled(
                f"the refinement was cancelled after {self.num_done} of {spec.steps} steps"
            )
        if signs.late:
            raise RefineError(
                f"the refinement's deadline of {spec.deadline_s:g} s passed after {self.num_done} "
                f"of {spec.steps} steps: raise refine.deadline_s or lower refine.steps"
            )

    def _gather(self, positions: Tensor) -> Placed:
        return self._model.place(self._rows.inputs, self._rows.aims.tensors(), positions)

    def _step(self, batch: Placed) -> None:
        spec, model = self._spec, self._model
        _seed_step(spec, self.num_done)
        loss = model.compute(batch, self._losses_of)
        if not np.isfinite(loss):  # the same on every rank
            raise Diverged(_diverged(spec, f"loss ({loss}) is", self.num_done))
        if self._objective.pull > 0:
            model.add_pull(self._objective.pull)
        if spec.max_grad_norm > 0:
            model.clip_gradients(spec.max_grad_norm)
        self.optimizer.step()
        self._losses = (loss if self.num_done == 0 else self._losses[0], loss)
        self.num_done += 1
        self._control.progress(self.num_done, spec.steps, loss)

    def _losses_of(self, outputs: Tensor, targets: Targets) -> Tensor:
        assert isinstance(targets, tuple)
        return self._objective.losses(outputs, self._rows.aims.with_tensors(targets))


def _own_random_numbers(device: torch.device) -> Any:
    """Keep the caller's random numbers as they are."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _seed_step(spec: RefineSpec, step: int) -> None:
    """Seed dropout by the step, so that a refinement that goes on draws what it would have drawn.

    All ranks draw alike: those that share a layer must, and examples differ between the others.
    """
    torch.manual_seed(stream_seed(spec.seed, "refine-dropout", round=spec.round, client=step))


def _diverged(spec: RefineSpec, what: str, num_done: int) -> str:
    return (
        f"the {what} not finite after {num_done} of {spec.steps} steps: lower "
        f"refine.learning_rate (now {spec.learning_rate:g})"
    )
