"""Refine weights on proxy data, with one model that is built once."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedge.errors import RefineError
from fedge.params import Vector
from fedge.task import Examples, Task
from fedge.weights import build_checked_model, layout_of, write_vector
from server.trainer.augmentations import AUGMENTATIONS
from server.trainer.batches import Rows
from server.trainer.checkpoints import Checkpoints, NoCheckpoints
from server.trainer.loop import UNATTENDED, Control, Course, Work, diverged
from server.trainer.objectives import OBJECTIVES, Material, Objective
from server.trainer.optimizers import OPTIMIZERS
from server.trainer.parallel.model import ParallelModel
from server.trainer.proxy_split import split_proxy
from server.trainer.ranks import Ranks, Solo, collective_errors
from server.trainer.spec import Diverged, Refinement, RefineSpec


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
        setting: names what decides an outcome beside weights and spec, such as the task's options:
            a checkpoint that was made with another is of no use.
    """

    task: Task
    model: ParallelModel
    data: ProxyData
    ranks: Ranks = field(default_factory=Solo)
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)
    setting: str = ""

    def run(
        self, weights: Vector, spec: RefineSpec, control: Control = UNATTENDED, *, key: str = ""
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
        make_optimizer = OPTIMIZERS[spec.optimizer]
        objective = OBJECTIVES[spec.objective](self.task, spec)
        augmentation = AUGMENTATIONS[spec.augmentation](self.task, spec)
        self._check_weights(weights)
        rows = self._prepare(objective, weights, spec)
        with collective_errors(), _own_random_numbers(self.model.device):
            self.model.load(weights)
            if objective.pull > 0:
                self.model.set_anchor()
            course = Course(
                Work(objective, augmentation, rows, spec, control, self._name(key), started),
                self.model,
                make_optimizer(self.model.parameters(), spec),
                self.ranks,
                self.checkpoints,
            )
            course.resume()
            course.train()
            refined = self.model.read()
        if not np.isfinite(refined).all():
            raise Diverged(diverged(spec, "weights are", course.num_done))
        return course.result(refined)

    def _name(self, key: str) -> str:
        if not key:
            return ""
        return hashlib.sha256(f"{key}:{self.setting}".encode()).hexdigest()[:32]

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


def _own_random_numbers(device: torch.device) -> Any:
    """Keep the caller's random numbers as they are."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
