"""A few clients that are trained side by side by one program."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.params import Vector
from fedge.settings import Hyperparameters
from fedge.training.batches import check_finite
from fedge.training.cohort_contracts import Batches
from fedge.training.dpsgd import MAX_PHYSICAL_BATCH
from fedge.training.fused.losses import LossGradient
from fedge.training.fused.program import Program
from fedge.training.progress import Progress
from fedge.training.terms import TERMS, ClientTerm, TermContext

_NORM_GUARD = 1e-6
"""Opacus adds this to a norm before it divides by it; the device does what Opacus does."""

_FLAT = "weights"


class Group:
    """Gradients of a few members, step by step.

    Batches of one step are filled up to the largest with examples of no weight. Members that have
    taken their steps drop out at the end of the group.

    Args:
        members: private or none of them, with the most steps first.

    Attributes:
        progress: of each member.
        errors: why a member failed, by its number; its weights are of no use then.
    """

    def __init__(self, program: Program, losses: LossGradient, members: Sequence[Batches]) -> None:
        self._program, self._losses, self._members = program, losses, members
        self.progress = [Progress() for _ in members]
        self.errors: dict[int, TaskError] = {}

    def make_term(self, hyper: Hyperparameters) -> ClientTerm:
        """Return the client term over all members' flat weights as if they were one parameter."""
        num = len(self._members)
        flat = nn.Parameter(self._program.weights[:num])
        flat.grad = self._program.gradient[:num]
        corrections = None
        if any(member.correction is not None for member in self._members):
            rows = [self._correction(member) for member in self._members]
            corrections = {_FLAT: torch.stack(rows)}
        return TERMS[hyper.client_term](TermContext({_FLAT: flat}, hyper, corrections))

    def _correction(self, member: Batches) -> Tensor:
        if member.correction is None:
            return torch.zeros(self._program.weights.shape[1])
        return self._program.flatten(member.correction)

    def set_gradients(self, step: int) -> int:
        """Set the gradients of those that take this step, ``[:K]``; return K."""
        steps = [member.steps[step] for member in self._members if step < len(member.steps)]
        if len(steps) < len(self._members):
            self._program.activate(len(steps))
        if self._members[0].plan is None:
            self._set_means(steps, step)
        else:
            self._set_noisy(steps, step)
        for progress in self.progress[: len(steps)]:
            progress.num_steps += 1
        return len(steps)

    def _set_means(self, steps: list[Tensor], step: int) -> None:
        """Set them to those of the batches' mean losses."""
        positions, real = _filled(steps)
        sizes = [at.shape[0] for at in steps]
        if real is None:
            weights = torch.full((len(sizes), sizes[0]), 1 / sizes[0])
        else:
            weights = real * torch.tensor([[1 / size] for size in sizes])
        losses, grad = self._evaluate(positions, weights)
        if not self._count(losses, real, sizes):
            self._check(losses, steps, "loss", step)
        self._program.backward(grad)

    def _set_noisy(self, steps: list[Tensor], step: int) -> None:
        """Set them to (sum of clipped gradients + noise) / public expected batch."""
        program = self._program
        gradient = program.gradient[: len(steps)]
        total = torch.zeros_like(gradient)
        plans = [member.plan for member in self._members[: len(steps)] if member.plan is not None]
        clip_norms = torch.tensor([[plan.clip_norm] for plan in plans])
        for part in _parts(steps):
            positions, real = _filled(part)
            ones = torch.ones(len(part), positions[0].shape[0]) if real is None else real
            losses, grad = self._evaluate(positions, ones)
            norms = program.norms(grad)
            self._check(norms, part, "gradient", step)
            self._count(losses, real, [at.shape[0] for at in part])
            program.weighted((clip_norms / (norms + _NORM_GUARD)).clamp_(max=1.0) * ones)
            total += gradient
        for number, (member, plan) in enumerate(zip(self._members, plans, strict=False)):
            assert member.noise is not None
            noise = member.noise[step] * (plan.noise_multiplier * plan.clip_norm)
            gradient[number] = noise.add_(total[number]).div_(plan.expected_batch)

    def _evaluate(self, positions: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses, ``[K, B]``, and the outputs' gradient of their weighted sum."""
        pairs = list(zip(self._members, positions, strict=False))
        inputs = torch.stack([member.inputs.index_select(0, at) for member, at in pairs])
        targets = torch.stack([member.targets.index_select(0, at) for member, at in pairs])
        return self._losses(self._program.forward(inputs), targets, weights)

    def _check(self, values: Tensor, steps: list[Tensor], what: str, step: int) -> None:
        """Take note of members with a value that is not finite."""
        if torch.isfinite(values).all():
            return
        for number, positions in enumerate(steps):
            try:
                check_finite(values[number, : len(positions)], positions, what, step)
            except TaskError as error:
                self.errors.setdefault(number, error)

    def _count(self, losses: Tensor, real: Tensor | None, sizes: list[int]) -> bool:
        """Add up real examples' losses; tell whether all are finite."""
        if real is not None:
            losses = torch.where(real > 0, losses, 0)
        sums = losses.sum(1, dtype=torch.float64).tolist()
        for progress, total, size in zip(self.progress, sums, sizes, strict=False):
            progress.total_loss += total
            progress.num_examples += size
        return all(map(math.isfinite, sums))

    def delta(self, number: int, start: Tensor) -> Vector:
        """Return what training changed."""
        return self._program.unflatten(self._program.weights[number] - start)


def _filled(steps: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """Fill positions up to the largest batch, and tell which are real, ``[K, B]`` of 1 and 0.

    None: all of them.
    """
    sizes = [at.shape[0] for at in steps]
    largest = max(sizes)
    if min(sizes) == largest:
        return steps, None
    real = torch.zeros(len(steps), largest)
    filled = []
    for number, positions in enumerate(steps):
        real[number, : sizes[number]] = 1
        # An example of the batch itself, so that no other one can do any harm.
        filler = int(positions[0]) if sizes[number] else 0
        spare = positions.new_full((largest - sizes[number],), filler)
        filled.append(torch.cat((positions, spare)))
    return filled, real


def _parts(steps: list[Tensor]) -> list[list[Tensor]]:
    """Split batches so that their activations fit into memory; empty ones alone have no parts."""
    largest = max(len(positions) for positions in steps)
    starts = range(0, largest, MAX_PHYSICAL_BATCH)
    return [[at[start : start + MAX_PHYSICAL_BATCH] for at in steps] for start in starts]
