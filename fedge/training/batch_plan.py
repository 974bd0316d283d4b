"""Every draw of some clients' training, made before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedge.errors import TaskError, UpdateRejected
from fedge.params import Layout, Vector
from fedge.privacy.noise import seed_of
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.training.backend_choice import describe
from fedge.training.batches import view_tensors
from fedge.training.cohort_contracts import Batches, CohortMember
from fedge.training.local import BROKEN_PARENT, NO_EXAMPLES
from fedge.training.steps import Steps
from fedge.training.terms import check_correction

_BYTES_PER_NORMAL = 8


class _Drawn(NamedTuple):
    """A member without DP whose uniforms are drawn and not yet sorted.

    Attributes:
        uniforms: one for the seed, then one an example and epoch, ``[1 + E · N]``.
    """

    position: int
    member: CohortMember
    inputs: Tensor
    targets: Tensor
    uniforms: Tensor


def plan_batches(
    members: Sequence[CohortMember], layout: Layout, hyper: Hyperparameters, num_trained: int
) -> list[Batches | TaskError]:
    """Check members' data and make their draws, each in the order of `LocalTrainer.train`.

    Args:
        num_trained: scalars that are trained, each of which gets noise under DP.

    Returns:
        In the order of members; an error where there are no examples, one is not finite, the
        correction or the start cannot be used, or torch cannot read the arrays.
    """
    planned: dict[int, Batches | TaskError] = {}
    drawn: dict[int, list[_Drawn]] = {}
    for position, member in enumerate(members):
        try:
            inputs, targets = _checked(member, layout, hyper)
            if member.plan is not None:
                planned[position] = _private(member, member.plan, inputs, targets, num_trained)
                continue
            size = len(inputs)
            uniforms = member.draws.uniform(1 + hyper.local_epochs * size)
            drawn.setdefault(size, []).append(_Drawn(position, member, inputs, targets, uniforms))
        except TaskError as error:
            planned[position] = error
        except Exception as error:  # arrays that torch cannot read, say
            planned[position] = TaskError(f"training failed: {describe(error)}")
    for alike in drawn.values():
        planned |= _shuffled(alike, hyper)
    return [planned[position] for position in range(len(members))]


def noise_bytes(plan: DpPlan | None, num_trained: int) -> int:
    """Return how many bytes a client's noise takes."""
    return 0 if plan is None else plan.num_steps * num_trained * _BYTES_PER_NORMAL


def _checked(member: CohortMember, layout: Layout, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
    if len(member.examples) == 0:
        raise TaskError(NO_EXAMPLES)
    if member.correction is not None:
        check_correction(member.correction, layout, hyper)
    if member.start is not None:
        _check_start(member.start, layout)
    return view_tensors(member.examples)


def _check_start(start: Vector, layout: Layout) -> None:
    try:
        layout.check(start)
    except UpdateRejected as error:
        raise TaskError(f"the weights do not fit the task's model: {error}") from error
    if not np.isfinite(start).all():
        raise TaskError(BROKEN_PARENT)


def _shuffled(drawn: Sequence[_Drawn], hyper: Hyperparameters) -> dict[int, Batches]:
    """Cut one permutation an epoch into batches, for members of one size at once.

    Sorted together they take a fifth of the time that one after another takes.
    """
    uniforms = torch.stack([each.uniforms for each in drawn]).numpy()
    seeds = map(seed_of, uniforms[:, 0].tolist())
    epochs = uniforms[:, 1:].reshape(len(drawn), hyper.local_epochs, -1)
    orders = torch.from_numpy(np.argsort(epochs, axis=2)).flatten(1).unbind()
    lengths = _lengths(epochs.shape[2], hyper.batch_size, hyper.local_epochs)
    found = {}
    for each, seed, order in zip(drawn, seeds, orders, strict=True):
        steps = Steps(order, lengths)
        member = each.member
        found[each.position] = Batches(
            each.inputs,
            each.targets,
            steps,
            seed,
            correction=member.correction,
            start=member.start,
        )
    return found


@lru_cache(maxsize=1024)
def _lengths(num_examples: int, batch_size: int, num_epochs: int) -> npt.NDArray[np.int64]:
    """Return the sizes of all batches; the last of each epoch may be smaller."""
    rest = num_examples % batch_size
    epoch = [batch_size] * (num_examples // batch_size) + ([rest] if rest else [])
    return np.array(epoch * num_epochs, np.int64)


def _private(
    member: CohortMember, plan: DpPlan, inputs: Tensor, targets: Tensor, num_trained: int
) -> Batches:
    """Take turns between a batch and its noise, as DP-SGD does."""
    seed = member.draws.seed()
    steps, noise = [], []
    for _ in range(plan.num_steps):
        steps.append(member.draws.poisson_batch(len(inputs), plan.sampling_rate))
        noise.append(member.draws.normal(num_trained))
    taken = Steps.of(steps)
    return Batches(inputs, targets, taken, seed, noise, plan, member.correction, member.start)
