"""The steps of one refinement, by one process or several alike.

Every rank draws the same global batches and computes its part of each. Before a step the ranks
add up the signs to stop that each sees, so that all take the same steps and fail at the same step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedge.errors import RefineError
from fedge.params import Vector
from fedge.rng import stream_seed
from server.trainer.augmentations import Augmentation
from server.trainer.batches import Rows, draw_batches, prefetched
from server.trainer.checkpoints import Checkpoints
from server.trainer.objectives import Objective
from server.trainer.optimizers import Optimizer
from server.trainer.parallel.model import ParallelModel, Placed, Targets
from server.trainer.ranks import Ranks
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


UNATTENDED = Control()


@dataclass(frozen=True)
class Work:
    """What one refinement does.

    Attributes:
        augmentation: None takes the rows as they are.
        key: names it among checkpoints; empty keeps none.
        started: time (monotonic) from which its deadline counts.
    """

    objective: Objective
    augmentation: Augmentation | None
    rows: Rows
    spec: RefineSpec
    control: Control
    key: str
    started: float


class Course:
    """One refinement on its way: its steps, their losses, and what a checkpoint holds of it.

    Attributes:
        num_done: steps taken, those before a checkpoint too.
    """

    def __init__(
        self,
        work: Work,
        model: ParallelModel,
        optimizer: Optimizer,
        ranks: Ranks,
        checkpoints: Checkpoints,
    ) -> None:
        self._work = work
        self._spec = work.spec
        self._model = model
        self._optimizer = optimizer
        self._ranks = ranks
        self._checkpoints = checkpoints
        self._earlier_s = 0.0  # what it took until the checkpoint that it goes on from
        self.num_done = 0
        self._losses = (np.nan, np.nan)  # of the first and of the last step

    @property
    def _seconds(self) -> float:
        return self._earlier_s + self._seconds_here

    @property
    def _seconds_here(self) -> float:
        return time.monotonic() - self._work.started

    def train(self) -> None:
        """Take the steps that are left."""
        spec = self._spec
        drawn = enumerate(draw_batches(len(self._work.rows), spec))
        batches = islice(drawn, self.num_done, spec.steps)
        with prefetched(batches, self._gather, self._model.device) as placed:
            for _ in range(self.num_done, spec.steps):
                signs = self._meet()
                self._check(signs)
                if signs.spent:
                    break
                if signs.keep:
                    self._checkpoints.save(self._work.key, self.num_done, self._state())
                self._step(next(placed))

    def resume(self) -> None:
        """Go on where an equal refinement was cut short, if there is a checkpoint of it."""
        state = self._state()
        if not self._work.key or not self._checkpoints.restore(self._work.key, state):
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
            "optimizer": self._optimizer.state_dict(),
            "course": course,
        }

    def _meet(self) -> Signs:
        """Return the signs that any rank sees before this step."""
        spec = self._spec
        signs = Signs(
            cancelled=self._work.control.should_stop(),
            late=self._seconds_here > spec.deadline_s,  # an order that is repeated has less
            spent=self.num_done > 0 and 0 < spec.budget_s < self._seconds,
            keep=bool(self._work.key) and self.num_done > 0 and self._checkpoints.due(),
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

    def _gather(self, batch: tuple[int, npt.NDArray[Any]]) -> Placed:
        """Return this rank's part of a step's batch; all ranks vary all of it, and so alike."""
        step, found = batch
        rows, positions = self._work.rows, torch.from_numpy(found)
        aims = rows.aims.tensors()
        if self._work.augmentation is None:
            return self._model.place(rows.inputs, aims, positions)
        generator = torch.Generator().manual_seed(_stream(self._spec, "refine-augmentation", step))
        varied = self._work.augmentation.vary(rows.inputs[positions], generator)
        chosen = tuple(each[positions] for each in aims)
        return self._model.place(varied, chosen, torch.arange(len(positions)))

    def _step(self, batch: Placed) -> None:
        spec, model = self._spec, self._model
        _seed_step(spec, self.num_done)
        loss = model.compute(batch, self._losses_of)
        if not np.isfinite(loss):  # the same on every rank
            raise Diverged(diverged(spec, f"loss ({loss}) is", self.num_done))
        if self._work.objective.pull > 0:
            model.add_pull(self._work.objective.pull)
        if spec.max_grad_norm > 0:
            model.clip_gradients(spec.max_grad_norm)
        self._optimizer.step()
        self._losses = (loss if self.num_done == 0 else self._losses[0], loss)
        self.num_done += 1
        self._work.control.progress(self.num_done, spec.steps, loss)

    def _losses_of(self, outputs: Tensor, targets: Targets) -> Tensor:
        assert isinstance(targets, tuple)
        return self._work.objective.losses(outputs, self._work.rows.aims.with_tensors(targets))


def _seed_step(spec: RefineSpec, step: int) -> None:
    """Seed dropout by the step, so that a refinement that goes on draws what it would have drawn.

    All ranks draw alike: those that share a layer must, and examples differ between the others.
    """
    torch.manual_seed(_stream(spec, "refine-dropout", step))


def _stream(spec: RefineSpec, purpose: str, step: int) -> int:
    return stream_seed(spec.seed, purpose, round=spec.round, client=step)


def diverged(spec: RefineSpec, what: str, num_done: int) -> str:
    """Say what is no longer finite, and what to change."""
    return (
        f"the {what} not finite after {num_done} of {spec.steps} steps: lower "
        f"refine.learning_rate (now {spec.learning_rate:g})"
    )
