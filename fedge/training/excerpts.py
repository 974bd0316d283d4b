"""The first steps of a client's training, with the examples that they take and no others."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedge.settings import Hyperparameters
from fedge.training.cohort_contracts import Batches
from fedge.training.steps import Steps


def excerpt(member: Batches, num_steps: int) -> Batches:
    """Return a member that takes its first steps alone; a short one stays as it is.

    Train it with `one_epoch` of the hyperparameters.
    """
    if len(member.steps) <= num_steps:
        return member
    lengths = member.steps.lengths[:num_steps]
    order = member.steps.order[: int(lengths.sum())]
    # Two epochs may take the same example, and a Poisson batch may be empty.
    rows, places = torch.unique(order, return_inverse=True)
    if len(rows) == 0:
        rows = torch.zeros(1, dtype=torch.int64)
    return replace(
        member,
        inputs=member.inputs[rows],
        targets=member.targets[rows],
        steps=Steps(places, lengths),
        noise=None if member.noise is None else member.noise[:num_steps],
        plan=None if member.plan is None else replace(member.plan, num_steps=num_steps),
    )


def one_epoch(hyper: Hyperparameters) -> Hyperparameters:
    """Return the same training with one epoch: excerpts know of no more."""
    return replace(hyper, local_epochs=1)
