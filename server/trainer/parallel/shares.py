"""Which examples of a batch a process computes, in which micro-batches, with which weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.trainer.parallel.degrees import Degrees, MeshConfig


@dataclass(frozen=True)
class Share:
    """One process' part of a batch, as many equal micro-batches as every other's.

    A batch that cannot be divided is filled up with examples of weight 0, so that shapes are the
    same everywhere and each example counts once in the mean.

    Attributes:
        positions: ``[M × m]`` int64, in the whole batch.
        weights: ``[M × m]``; over all processes they sum to 1.
        num_micro_batches: M.
    """

    positions: Tensor
    weights: Tensor
    num_micro_batches: int

    @property
    def micro_batch_size(self) -> int:
        """Examples of each micro-batch."""
        return len(self.positions) // self.num_micro_batches


def share_of(num_examples: int, place: int, num_parts: int, num_micro_batches: int) -> Share:
    """Return what the process at this place of the data dimensions computes."""
    size = -(-num_examples // (num_parts * num_micro_batches))
    held = size * num_micro_batches
    positions = torch.arange(place * held, (place + 1) * held)
    weights = (positions < num_examples).float() / num_examples
    return Share(positions.clamp(max=num_examples - 1), weights, num_micro_batches)


def num_micro_batches(degrees: Degrees, config: MeshConfig) -> int:
    """Return how many micro-batches a step has: a pipeline needs one a stage at least."""
    if config.micro_batches:
        return max(config.micro_batches, degrees.pipeline)
    return 1 if degrees.pipeline == 1 else 2 * degrees.pipeline
