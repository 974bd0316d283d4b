"""Every draw of one client's training, made before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from fedge.errors import TaskError
from fedge.params import Layout
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.training.batches import view_tensors
from fedge.training.cohort_contracts import Batches, CohortMember
from fedge.training.local import NO_EXAMPLES
from fedge.training.terms import check_correction

_BYTES_PER_NORMAL = 8


def plan_batches(
    member: CohortMember, layout: Layout, hyper: Hyperparameters, num_trained: int
) -> Batches:
    """Check a member's data and make its draws in the order of `LocalTrainer.train`.

    Args:
        num_trained: scalars that are trained, each of which gets noise.

    Raises:
        TaskError: there are no examples, one is not finite, or the correction cannot be used.
    """
    if len(member.examples) == 0:
        raise TaskError(NO_EXAMPLES)
    if member.correction is not None:
        check_correction(member.correction, layout, hyper)
    inputs, targets = view_tensors(member.examples)
    draws, plan = member.draws, member.plan
    seed = draws.seed()
    if plan is None:
        steps, noise = _shuffled(draws, len(inputs), hyper), None
    else:
        steps, noise = _poisson(draws, len(inputs), plan, num_trained)
    return Batches(inputs, targets, steps, seed, noise, plan, member.correction, member.start)


def noise_bytes(plan: DpPlan | None, num_trained: int) -> int:
    """Return how many bytes a client's noise takes."""
    return 0 if plan is None else plan.num_steps * num_trained * _BYTES_PER_NORMAL


def _shuffled(draws: Draws, num_examples: int, hyper: Hyperparameters) -> list[Tensor]:
    """Cut one permutation an epoch into batches; the last of each may be smaller."""
    steps: list[Tensor] = []
    for _ in range(hyper.local_epochs):
        steps += torch.split(draws.permutation(num_examples), hyper.batch_size)
    return steps


def _poisson(
    draws: Draws, num_examples: int, plan: DpPlan, num_trained: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Take turns between a batch and its noise, as DP-SGD does."""
    steps, noise = [], []
    for _ in range(plan.num_steps):
        steps.append(draws.poisson_batch(num_examples, plan.sampling_rate))
        noise.append(draws.normal(num_trained))
    return steps, noise
