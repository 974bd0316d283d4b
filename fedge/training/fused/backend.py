"""The backend `fused`: one client after another, by a program of written-out steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.params import Layout, Vector
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Task
from fedge.training.batches import check_finite
from fedge.training.cohort_contracts import BACKENDS, Batches, CohortSettings, Outcome
from fedge.training.dpsgd import MAX_PHYSICAL_BATCH
from fedge.training.fused.losses import LossGradient
from fedge.training.fused.optimizers import FLAT_OPTIMIZERS
from fedge.training.fused.program import Program
from fedge.training.local import DIVERGED, LocalResult
from fedge.training.progress import Progress
from fedge.training.terms import TERMS, ClientTerm, TermContext
from fedge.weights import layout_of

_NORM_GUARD = 1e-6
"""Opacus adds this to a norm before it divides by it; the device does what Opacus does."""

_FLAT = "weights"


@BACKENDS.register("fused")
class FusedBackend:
    """Trains chains of layers without autograd, on one flat vector of weights.

    Args:
        model: read once for its layers and their options.
    """

    name = "fused"

    def __init__(
        self, task: Task, model: nn.Module, layout: Layout, settings: CohortSettings
    ) -> None:
        self._task, self._model, self._layout, self._settings = task, model, layout, settings

    @cached_property
    def _program(self) -> Program:
        return Program(self._model, self._layout)

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
            return "the model has buffers, which its own code may change"
        try:
            Program(model, layout_of(model))
        except TaskError as error:
            return str(error)
        return ""

    def train(
        self, parent: Vector, members: Sequence[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train all members, one after another; outcomes are in their order."""
        began = time.monotonic()
        losses = LossGradient(self._task)
        outcomes: list[Outcome] = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for member in members:
                try:
                    outcomes.append(self._train_one(losses, parent, member, hyper))
                except TaskError as error:
                    outcomes.append(error)
                except Exception as error:  # the task is the user's, and others are to be trained
                    text = f"training failed: {type(error).__name__}: {error}"
                    outcomes.append(TaskError(text))
        share = (time.monotonic() - began) / max(len(members), 1)
        return [_with_seconds(outcome, share) for outcome in outcomes]

    def _train_one(
        self, losses: LossGradient, parent: Vector, member: Batches, hyper: Hyperparameters
    ) -> LocalResult:
        program = self._program
        program.load(parent)
        run = _Run(losses, program, member, program.prepare(member.inputs))
        optimizer = FLAT_OPTIMIZERS[hyper.optimizer](hyper)
        term = _flat_term(program, hyper, member.correction)
        torch.default_generator.manual_seed(member.seed)
        for number, positions in enumerate(member.steps):
            if member.plan is None:
                run.set_gradient(positions)
            else:
                assert member.noise is not None
                run.set_noisy_gradient(positions, member.plan, member.noise[number])
            term.add_to_gradients()
            optimizer.step(program.weights, program.gradient)
            run.progress.num_steps += 1
        start = program.gather(parent)
        delta = program.scatter(program.weights - start, np.zeros_like(parent))
        if not np.isfinite(delta).all():
            raise TaskError(DIVERGED)
        return LocalResult(delta, run.progress.num_steps, 0.0, run.progress.loss)


class _Run:
    """One member's gradients, batch by batch.

    Args:
        inputs: as the program prepared them.
    """

    def __init__(
        self, losses: LossGradient, program: Program, member: Batches, inputs: Tensor
    ) -> None:
        self._losses, self._program = losses, program
        self._inputs, self._targets = inputs, member.targets
        self.progress = Progress()

    def set_gradient(self, positions: Tensor) -> None:
        """Set the program's gradient to that of the batch's mean loss."""
        losses, grad = self._loss_gradient(positions, 1 / len(positions))
        self._count(losses, positions, "loss")
        self._program.backward(grad)

    def set_noisy_gradient(self, positions: Tensor, plan: DpPlan, normals: Tensor) -> None:
        """Set it to (sum of clipped gradients + noise) / public expected batch."""
        program = self._program
        total = torch.zeros_like(program.gradient)
        for part in torch.split(positions, MAX_PHYSICAL_BATCH) if len(positions) else ():
            losses, grad = self._loss_gradient(part, 1.0)
            norms = program.norms(grad)
            check_finite(norms, part, "gradient", self.progress.num_steps)
            program.weighted((plan.clip_norm / (norms + _NORM_GUARD)).clamp_(max=1.0))
            total += program.gradient
            self.progress.add_losses(losses)
        noise = normals * (plan.noise_multiplier * plan.clip_norm)
        program.gradient.copy_(noise.add_(total).div_(plan.expected_batch))

    def _loss_gradient(self, positions: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Return each example's loss, and the outputs' gradient of their sum times a weight."""
        outputs = self._program.forward(self._inputs, positions)
        return self._losses(outputs, self._targets.index_select(0, positions), weight)

    def _count(self, losses: Tensor, positions: Tensor, what: str) -> None:
        total = losses.double().sum().item()
        if not math.isfinite(total):
            check_finite(losses, positions, what, self.progress.num_steps)
        self.progress.num_examples += len(positions)
        self.progress.total_loss += total


def _flat_term(program: Program, hyper: Hyperparameters, correction: Vector | None) -> ClientTerm:
    """Return the client term over the flat weights as if they were one parameter."""
    flat = nn.Parameter(program.weights)
    flat.grad = program.gradient
    parts = None if correction is None else {_FLAT: program.gather(correction)}
    return TERMS[hyper.client_term](TermContext({_FLAT: flat}, hyper, parts))


def _with_seconds(outcome: Outcome, seconds: float) -> Outcome:
    if isinstance(outcome, TaskError):
        return outcome
    return LocalResult(outcome.delta, outcome.num_steps, seconds, outcome.loss)
