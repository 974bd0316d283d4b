"""SCAFFOLD's server half: the mean update, and the control that keeps clients from drifting."""

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
from fedge.errors import AggregationError
from fedge.params import Layout, Vector

CONTROL = "control"


@dataclass
class ControlledSum:
    """A partial aggregate with what it says of the clients' gradients; two of them merge.

    Attributes:
        updates: sum of the updates.
        descents: sum of the updates, each a step and a unit of learning rate.
        control: the server's control that this round trained with.
    """

    updates: RunningSum
    descents: RunningSum
    control: Vector


@STREAMING.register("scaffold")
class Scaffold:
    """Uniform mean, and the next control from the same updates, so nothing more travels up.

    Every client counts the same, because the mean of the controls decides what the rounds
    converge to, and weights of clients that are absent are not known. It is made for rounds
    without late updates: one that trained with an older control is read with today's, and an
    update that is lost after its device moved on leaves the control off by its share.

    Source: Karimireddy et al. 2020, arXiv:1910.06378, option II.
    """

    needs_steps: ClassVar[bool] = True

    def __init__(self, options: AggregatorOptions) -> None:
        self._learning_rate = options.learning_rate
        self._momentum = options.momentum
        self._num_clients = options.num_clients

    def init(self, layout: Layout, context: RoundContext) -> ControlledSum:
        """Return an empty sum beside the control of the last round; zero in the first."""
        control = context.memory.get(CONTROL)
        if control is None:
            control = np.zeros(layout.size, np.float32)
        return ControlledSum(RunningSum(layout.size), RunningSum(layout.size), control)

    def add(self, state: ControlledSum, update: ClientUpdate) -> ControlledSum:
        """Add one update in place."""
        steps = effective_steps(update.num_steps, self._momentum)
        state.updates.add(update.delta, update.discount)
        state.descents.add(update.delta, 1.0, scale=1.0 / (steps * self._learning_rate))
        return state

    def merge(self, left: ControlledSum, right: ControlledSum) -> ControlledSum:
        """Add the right partial aggregate to the left one in place."""
        left.updates.merge(right.updates)
        left.descents.merge(right.descents)
        return left

    def finish(self, state: ControlledSum) -> tuple[Vector, Memory]:
        """Return the mean delta and the next control.

        Raises:
            AggregationError: there is nothing to aggregate, or the control overflows.
        """
        delta = state.updates.mean()
        # Σ Δc_i / N with Δc_i = −c − δ_i/(K_i·η), and |S| of N clients in the round.
        share = self._share(state.descents.num_updates)
        control = state.descents.mean()
        control *= np.float32(-share)
        control += np.float32(1 - share) * state.control
        if not np.isfinite(control).all():
            raise AggregationError(
                "SCAFFOLD's control is not finite although each update is; lower "
                "aggregation.max_norm, or raise train.learning_rate"
            )
        return delta, {CONTROL: control}

    def _share(self, num_updates: int) -> float:
        return num_updates / max(num_updates, self._num_clients)
