"""The backend `fused`: a few clients at a time, by a program of written-out steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from fedge.errors import TaskError
from fedge.params import Layout, Vector
from fedge.settings import Hyperparameters
from fedge.task import Task
from fedge.training.cohort_contracts import BACKENDS, Batches, CohortSettings, Outcome
from fedge.training.fused.group import Group
from fedge.training.fused.losses import LossGradient
from fedge.training.fused.optimizers import FLAT_OPTIMIZERS
from fedge.training.fused.program import Program
from fedge.training.local import DIVERGED, LocalResult
from fedge.training.sgd import trained_parameters
from fedge.weights import layout_of

_MAX_CLIENTS = 8
"""Each operation has a cost of its own, which more clients share; the convolutions themselves
take longer where more images stand in the core's cache."""

_MAX_PRIVATE_CLIENTS = 4
"""Gradients of single examples fill the cache sooner, and batches of unlike size are filled up."""

_MAX_PARAMETERS = {1 << 19: _MAX_CLIENTS, 1 << 22: 4}
"""Up to so many, so many clients; beyond, weights fill the cache and a client goes alone."""


@BACKENDS.register("fused")
class FusedBackend:
    """Trains chains of layers without autograd, a few clients side by side.

    Args:
        model: read for its layers and their options.
    """

    name = "fused"

    def __init__(
        self, task: Task, model: nn.Module, layout: Layout, settings: CohortSettings
    ) -> None:
        self._model, self._layout, self._settings = model, layout, settings
        self._losses = LossGradient(task)

    @cached_property
    def _program(self) -> Program:
        size = sum(parameter.numel() for parameter in trained_parameters(self._model))
        fitting = (clients for limit, clients in _MAX_PARAMETERS.items() if size <= limit)
        return Program(self._model, self._layout, next(fitting, 1))

    def reason_against(
        self,
        model: nn.Module,
        hyper: Hyperparameters,
        private: bool,  # noqa: ARG002
    ) -> str:
        """Say in a few words why this backend cannot train so; empty if it can."""
        if self._settings.precision != "float32" or self._settings.device != "cpu":
            return "it trains in float32 on the CPU"
        if hyper.optimizer not in FLAT_OPTIMIZERS:
            return f"it has no optimiser {hyper.optimizer!r}"
        if any(True for _ in model.buffers()):
            return "the model has buffers, whose changes it would lose"
        try:
            Program(model, layout_of(model), 1)
        except TaskError as error:
            return str(error)
        return ""

    def train(
        self, parent: Vector, members: Sequence[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train all members; outcomes are in their order."""
        began = time.monotonic()
        outcomes: dict[int, Outcome] = {}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for group in self._groups(parent, members):
                found = self._train_or_split(parent, [members[at] for at in group], hyper)
                outcomes |= dict(zip(group, found, strict=True))
        share = (time.monotonic() - began) / max(len(members), 1)
        return [_with_seconds(outcomes[at], share) for at in range(len(members))]

    def _groups(self, parent: Vector, members: Sequence[Batches]) -> list[list[int]]:
        """Return members of similar length together, those with the most steps first."""
        order = sorted(
            range(len(members)),
            key=lambda at: (-len(members[at].steps), -len(members[at].inputs)),
        )
        size = len(self._program.weights)
        if any(member.plan is not None for member in members):
            size = min(size, _MAX_PRIVATE_CLIENTS)
        if self._program.is_random or not self._has_plain_loss(parent, members):
            size = 1
        num_groups = -(-len(order) // size)
        return [part.tolist() for part in np.array_split(order, num_groups) if len(part)]

    def _has_plain_loss(self, parent: Vector, members: Sequence[Batches]) -> bool:
        """Tell whether the loss is known well enough to be taken for several clients at once."""
        if self._losses.is_plain is None and members:
            try:
                self._program.load(parent, [None])
                outputs = self._program.forward(members[0].inputs[None, :1])
                self._losses(outputs, members[0].targets[None, :1], torch.ones(1, 1))
            except Exception:  # the task is the user's; the client's own training will say
                return False
        return bool(self._losses.is_plain)

    def _train_or_split(
        self, parent: Vector, members: list[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train a group; if the task raises, find out whose fault it is."""
        try:
            return self._train_group(parent, members, hyper)
        except TaskError as error:
            failure = error
        except Exception as error:  # the task is the user's, and others are still to be trained
            failure = TaskError(f"training failed: {type(error).__name__}: {error}")
        if len(members) == 1:
            return [failure]
        return [self._train_or_split(parent, [member], hyper)[0] for member in members]

    def _train_group(
        self, parent: Vector, members: list[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        program = self._program
        starts = program.load(parent, [member.start for member in members])
        group = Group(program, self._losses, members)
        term, optimizer = group.make_term(hyper), FLAT_OPTIMIZERS[hyper.optimizer](hyper)
        # A group of several draws nothing.
        torch.default_generator.manual_seed(members[0].seed)
        for step in range(len(members[0].steps)):
            active = group.set_gradients(step)
            term.add_to_gradients()
            optimizer.step(program.weights[:active], program.gradient[:active])
            if len(group.errors) == len(members):
                break
        outcomes: list[Outcome] = []
        for number, progress in enumerate(group.progress):
            delta = group.delta(number, starts[number])
            if number not in group.errors and not np.isfinite(delta).all():
                group.errors[number] = TaskError(DIVERGED)
            result = LocalResult(delta, progress.num_steps, 0.0, progress.loss)
            outcomes.append(group.errors.get(number, result))
        return outcomes


def _with_seconds(outcome: Outcome, seconds: float) -> Outcome:
    return outcome if isinstance(outcome, TaskError) else replace(outcome, seconds=seconds)
