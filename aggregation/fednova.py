"""FedNova: clients that take more steps do not pull the mean towards themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from aggregation.contracts import (
    STREAMING,
    AggregatorOptions,
    ClientUpdate,
    Memory,
    RoundContext,
)
from aggregation.local_steps import effective_steps
from aggregation.mean import RunningSum
from fedge.params import Layout, Vector


@dataclass
class NormalizedSum:
    """A partial aggregate of updates a step; two of them merge.

    Attributes:
        sum: of the updates, each divided by its steps.
        steps: sum of weight times steps.
    """

    sum: RunningSum
    steps: float = 0.0


@STREAMING.register("fednova")
class FedNova:
    """Mean step of the clients times their mean number of steps.

    Steps are those a client reports, as `effective_steps` counts them for the momentum that the
    server asked for. A client that reports too many steps lengthens everybody's: the gate has to
    bound the number.

    Source: Wang et al. 2020, arXiv:2007.07481.
    """

    needs_steps: ClassVar[bool] = True

    def __init__(self, options: AggregatorOptions) -> None:
        self._momentum = options.momentum

    def init(self, layout: Layout, context: RoundContext) -> NormalizedSum:  # noqa: ARG002
        """Return an empty sum."""
        return NormalizedSum(RunningSum(layout.size))

    def add(self, state: NormalizedSum, update: ClientUpdate) -> NormalizedSum:
        """Add one update in place."""
        steps = effective_steps(update.num_steps, self._momentum)
        state.sum.add(update.delta, update.weight, scale=1.0 / steps)
        state.steps += update.weight * steps
        return state

    def merge(self, left: NormalizedSum, right: NormalizedSum) -> NormalizedSum:
        """Add the right partial aggregate to the left one in place."""
        left.sum.merge(right.sum)
        left.steps += right.steps
        return left

    def finish(self, state: NormalizedSum) -> tuple[Vector, Memory]:
        """Return the normalised mean delta; nothing is remembered."""
        delta = state.sum.mean()
        delta *= np.float32(state.steps / state.sum.weight)
        return delta, {}
