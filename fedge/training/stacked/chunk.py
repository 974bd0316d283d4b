"""Clients of like batches side by side: which of their examples each step takes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedge.settings import Hyperparameters
from fedge.training.cohort_contracts import Batches
from fedge.training.stacked.gradients import StepInputs

_LEAST_WIDTH = 4


def bucket_key(member: Batches, hyper: Hyperparameters) -> Hashable:
    """Return what members of one chunk have in common; the first entry is their width.

    It follows from the member alone, so that nobody's neighbours change what is computed.
    """
    size = len(member.inputs)
    if member.plan is None:
        full = size >= hyper.batch_size
        width = hyper.batch_size if full else min(hyper.batch_size, _round_up(size))
    else:
        width = _round_up(int(member.steps.lengths.max(initial=1)))
    tensors = (member.inputs, member.targets)
    return (width, *((tensor.shape[1:], tensor.dtype) for tensor in tensors))


def _round_up(size: int) -> int:
    """Return the least of 4, 6, 8, 12, 16, 24, 32, ... that is enough."""
    power = max(_LEAST_WIDTH, 1 << max(0, size - 1).bit_length())
    return power * 3 // 4 if power > _LEAST_WIDTH and size <= power * 3 // 4 else power


class Chunk:
    """Members of one bucket, those of most steps first, so that active ones are a prefix.

    Args:
        width: rows a step; a smaller batch repeats its first example (or the member's).
    """

    def __init__(self, members: Sequence[Batches], width: int, device: torch.device) -> None:
        self.members = members
        self.width = width
        self._inputs = torch.cat([member.inputs for member in members]).to(device)
        self._targets = torch.cat([member.targets for member in members]).to(device)
        lengths = _lengths(members)
        self.sizes = torch.from_numpy(lengths).T.contiguous()
        """Examples of each step and member, ``[T, K]``; 0 where a member has no such step."""
        # Members stand in the order of their steps' numbers: those with a step t come first.
        counts = np.array([len(member.steps) for member in members])
        self.active = [int((counts > step).sum()) for step in range(lengths.shape[1])]
        self._index = _rows(members, lengths, width).to(device)
        taken = self.sizes[:, :, None]
        self.valid = torch.arange(width) < taken
        """Which rows are a member's own, ``[T, K, W]``."""
        self._shares = (self.valid / taken.clamp(min=1)).to(device)

    def batch(self, step: int) -> StepInputs:
        """Return the rows of a step's active members, each a mean's share of its batch."""
        count = self.active[step]
        return self.gather(self._index[step, :count], self._shares[step, :count])

    def gather(self, index: Tensor, shares: Tensor) -> StepInputs:
        """Return the rows at these positions ``[K, W]`` of the chunk's examples."""
        rows = index.flatten()
        return StepInputs(
            self._inputs.index_select(0, rows).view(*index.shape, *self._inputs.shape[1:]),
            self._targets.index_select(0, rows).view(*index.shape, *self._targets.shape[1:]),
            shares,
        )

    def positions(self, step: int) -> tuple[Tensor, Tensor]:
        """Return what `gather` takes for a step."""
        return self._index[step], self._shares[step]


def _lengths(members: Sequence[Batches]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return each member's batch sizes, ``[K, T]``, 0 past its last step."""
    num_steps = max(len(member.steps) for member in members)
    lengths = np.zeros((len(members), num_steps), np.int64)
    for row, member in zip(lengths, members, strict=True):
        row[: len(member.steps)] = member.steps.lengths
    return lengths


def _rows(
    members: Sequence[Batches],
    lengths: np.ndarray[tuple[int, int], np.dtype[np.int64]],
    width: int,
) -> Tensor:
    """Return where each row stands among the chunk's examples, ``[T, K, W]``."""
    sizes = [len(member.inputs) for member in members]
    starts = torch.from_numpy(np.cumsum([0, *sizes[:-1]]))
    found = torch.zeros(*lengths.shape, width, dtype=torch.int64)
    own = torch.arange(width) < torch.from_numpy(lengths)[:, :, None]
    # A mask is filled in the order in which the steps stand: member by member.
    found.masked_scatter_(own, torch.cat([member.steps.order for member in members]))
    found = torch.where(own, found, found[:, :, :1]) + starts[:, None, None]
    return found.transpose(0, 1).contiguous()
