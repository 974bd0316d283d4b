"""The mean of a round's updates, as a running sum: memory does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from aggregation.contracts import (
    STREAMING,
    AggregatorOptions,
    ClientUpdate,
    Memory,
    RoundContext,
)
from aggregation.norms import tensor_of
from fedge.errors import AggregationError
from fedge.params import Layout, Vector

BLOCK = 32
"""Updates summed up before the sum is added to the total: the rounding error then grows with the
square root of 32 and of the number of blocks, not of the number of updates."""


@dataclass
class RunningSum:
    """A partial aggregate; two of them merge.

    Attributes:
        total: sum of weight times delta over whole blocks, ``[size]``.
        block: the same over the open block, ``[size]``; made when it is needed.
        weight: sum of weights.
        num_updates: how many were added.
        num_in_block: how many the open block holds.
    """

    size: int
    total: Vector = field(init=False)
    block: Vector | None = None
    weight: float = 0.0
    num_updates: int = 0
    num_in_block: int = 0

    def __post_init__(self) -> None:
        """Begin at zero."""
        self.total = np.zeros(self.size, np.float32)

    def add(self, delta: Vector, weight: float, *, scale: float = 1.0) -> RunningSum:
        """Add ``weight × scale × delta`` in place, and the weight."""
        block, factor = tensor_of(self._open_block()), weight * scale
        # Torch reads, scales and adds in one pass: 3.4 ms at 11 M parameters, numpy 9.4.
        if self.num_in_block == 0:
            torch.mul(tensor_of(delta), factor, out=block)
        else:
            block.add_(tensor_of(delta), alpha=factor)
        self.weight += weight
        self.num_updates += 1
        self.num_in_block += 1
        if self.num_in_block == BLOCK:
            self._fold()
        return self

    def merge(self, other: RunningSum) -> RunningSum:
        """Add the other sum in place; the other one must not be used any more."""
        self._fold()
        other._fold()
        tensor_of(self.total).add_(tensor_of(other.total))
        self.weight += other.weight
        self.num_updates += other.num_updates
        return self

    def mean(self) -> Vector:
        """Return the weighted mean; the sum itself stays as it is.

        Raises:
            AggregationError: nothing was added.
        """
        return self.divided_by(self.weight)

    def divided_by(self, divisor: float) -> Vector:
        """Return the sum divided by a number; the sum itself stays as it is.

        Raises:
            AggregationError: nothing was added.
        """
        if self.num_updates == 0:
            raise AggregationError("there is no update to average")
        self._fold()
        # The result takes the block's memory, so that finishing needs no third vector.
        result, self.block = self._open_block(), None
        np.divide(self.total, np.float32(divisor), out=result)
        return result

    def _open_block(self) -> Vector:
        if self.block is None:
            self.block = np.empty(self.size, np.float32)
        return self.block

    def _fold(self) -> None:
        if self.num_in_block and self.block is not None:
            tensor_of(self.total).add_(tensor_of(self.block))
            self.num_in_block = 0


@STREAMING.register("weighted-mean")
class WeightedMean:
    """Mean weighted by each client's number of examples (FedAvg); one client can ruin it.

    Source: McMahan et al. 2017, arXiv:1602.05629.
    """

    def __init__(self, options: AggregatorOptions) -> None:
        """Take no option."""

    def init(self, layout: Layout, context: RoundContext) -> RunningSum:  # noqa: ARG002
        """Return an empty sum."""
        return RunningSum(layout.size)

    def add(self, state: RunningSum, update: ClientUpdate) -> RunningSum:
        """Add one update in place."""
        return state.add(update.delta, update.weight)

    def merge(self, left: RunningSum, right: RunningSum) -> RunningSum:
        """Add the right sum to the left one in place."""
        return left.merge(right)

    def finish(self, state: RunningSum) -> tuple[Vector, Memory]:
        """Return the mean delta; nothing is remembered."""
        return state.mean(), {}


@STREAMING.register("uniform-mean")
class UniformMean:
    """Mean in which every client counts the same, whatever it says of its examples."""

    def __init__(self, options: AggregatorOptions) -> None:
        """Take no option."""

    def init(self, layout: Layout, context: RoundContext) -> RunningSum:  # noqa: ARG002
        """Return an empty sum."""
        return RunningSum(layout.size)

    def add(self, state: RunningSum, update: ClientUpdate) -> RunningSum:
        """Add one update in place."""
        return state.add(update.delta, update.discount)

    def merge(self, left: RunningSum, right: RunningSum) -> RunningSum:
        """Add the right sum to the left one in place."""
        return left.merge(right)

    def finish(self, state: RunningSum) -> tuple[Vector, Memory]:
        """Return the mean delta; nothing is remembered."""
        return state.mean(), {}
