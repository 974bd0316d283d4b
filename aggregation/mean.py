"""The mean of a round's updates, as a running sum: memory does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from aggregation.contracts import STREAMING, ClientUpdate, Memory, RoundContext
from fedge.errors import AggregationError
from fedge.params import Layout, Vector


@dataclass
class RunningSum:
    """A partial aggregate; two of them merge.

    Attributes:
        total: sum of weight times delta, ``[layout.size]``.
        weight: sum of weights.
        num_updates: how many were added.
    """

    total: Vector
    weight: float = 0.0
    num_updates: int = 0


@STREAMING.register("weighted-mean")
class WeightedMean:
    """Mean weighted by each client's number of examples (FedAvg).

    Source: McMahan et al. 2017, arXiv:1602.05629.
    """

    def init(self, layout: Layout, context: RoundContext) -> RunningSum:  # noqa: ARG002
        """Return an empty sum."""
        return RunningSum(np.zeros(layout.size, np.float32))

    def add(self, state: RunningSum, update: ClientUpdate) -> RunningSum:
        """Add one update in place."""
        return _add(state, update.delta, update.num_examples)

    def merge(self, left: RunningSum, right: RunningSum) -> RunningSum:
        """Add the right sum to the left one in place."""
        return _merge(left, right)

    def finish(self, state: RunningSum) -> tuple[Vector, Memory]:
        """Return the mean delta; nothing is remembered."""
        return _mean(state), {}


@STREAMING.register("uniform-mean")
class UniformMean:
    """Mean in which every client counts the same, whatever it says of its examples."""

    def init(self, layout: Layout, context: RoundContext) -> RunningSum:  # noqa: ARG002
        """Return an empty sum."""
        return RunningSum(np.zeros(layout.size, np.float32))

    def add(self, state: RunningSum, update: ClientUpdate) -> RunningSum:
        """Add one update in place."""
        return _add(state, update.delta, 1.0)

    def merge(self, left: RunningSum, right: RunningSum) -> RunningSum:
        """Add the right sum to the left one in place."""
        return _merge(left, right)

    def finish(self, state: RunningSum) -> tuple[Vector, Memory]:
        """Return the mean delta; nothing is remembered."""
        return _mean(state), {}


def _add(state: RunningSum, delta: Vector, weight: float) -> RunningSum:
    # torch reads, scales and adds in one pass (3.4 ms at 11 M parameters; numpy in chunks 5.3
    # at best) but warns of arrays it could not write to, such as views of received bytes.
    owned = delta if delta.flags.writeable else delta.copy()
    torch.from_numpy(state.total).add_(torch.from_numpy(owned), alpha=weight)
    state.weight += weight
    state.num_updates += 1
    return state


def _merge(left: RunningSum, right: RunningSum) -> RunningSum:
    np.add(left.total, right.total, out=left.total)
    left.weight += right.weight
    left.num_updates += right.num_updates
    return left


def _mean(state: RunningSum) -> Vector:
    if state.num_updates == 0:
        raise AggregationError("there is no update to average")
    return state.total / np.float32(state.weight)
