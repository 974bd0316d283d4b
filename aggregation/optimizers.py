"""Server optimisers: from an aggregate delta to the next global weights."""

from __future__ import annotations

import numpy as np

from aggregation.contracts import OPTIMIZERS, Memory, OptimizerOptions
from fedge.params import Layout, Vector


@OPTIMIZERS.register("fedavg")
class FedAvg:
    """Step by learning rate times delta; with 1 the aggregate itself is the next model."""

    def __init__(self, options: OptimizerOptions) -> None:
        self._learning_rate = np.float32(options.learning_rate)

    def init(self, layout: Layout) -> Memory:  # noqa: ARG002
        """Return an empty state."""
        return {}

    def apply(self, weights: Vector, delta: Vector, state: Memory) -> tuple[Vector, Memory]:
        """Return weights plus learning rate times delta."""
        return weights + self._learning_rate * delta, state


@OPTIMIZERS.register("fedavgm")
class FedAvgM:
    """Step along a velocity: momentum times the last one plus delta.

    Source: Hsu et al. 2019, arXiv:1909.06335.
    """

    def __init__(self, options: OptimizerOptions) -> None:
        self._learning_rate = np.float32(options.learning_rate)
        self._momentum = np.float32(options.momentum)

    def init(self, layout: Layout) -> Memory:
        """Return the velocity at rest."""
        return {"velocity": np.zeros(layout.size, np.float32)}

    def apply(self, weights: Vector, delta: Vector, state: Memory) -> tuple[Vector, Memory]:
        """Return weights plus learning rate times the new velocity, and that velocity."""
        velocity = self._momentum * state["velocity"] + delta
        return weights + self._learning_rate * velocity, {"velocity": velocity}
