"""A task whose loss is a quadratic, so that what training converges to is known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from fedge.task import Examples
from tests.tiny_task import TinyTask

NUM_INPUTS = 2


class QuadraticTask(TinyTask):
    """Least squares through the origin: loss ½(w·x − y)² an example."""

    def build_model(self) -> nn.Module:
        return nn.Linear(NUM_INPUTS, 1, bias=False)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(1) - targets).square() / 2


def clients(number: int, num_examples: int = 4) -> list[Examples]:
    """Make clients that disagree about the weights and about their scale."""
    rng = np.random.default_rng(3)
    made = []
    for client in range(number):
        inputs = rng.normal(size=(num_examples, NUM_INPUTS)) * (0.4 + 0.4 * client)
        targets = inputs @ rng.normal(size=NUM_INPUTS) * 4
        made.append(Examples(inputs.astype(np.float32), targets.astype(np.float32)))
    return made


def gradient(weights: np.ndarray[Any, Any], examples: Examples) -> np.ndarray[Any, Any]:
    """Return the gradient of a client's mean loss, in double precision."""
    inputs = examples.inputs.astype(np.float64)
    errors = inputs @ weights - examples.targets
    return np.asarray(inputs.T @ errors / len(examples))


def optimum(data: list[Examples]) -> np.ndarray[Any, Any]:
    """Return where the mean over clients of their mean losses is least."""
    curvature = np.zeros((NUM_INPUTS, NUM_INPUTS))
    offset = np.zeros(NUM_INPUTS)
    for examples in data:
        inputs = examples.inputs.astype(np.float64)
        curvature += inputs.T @ inputs / len(examples)
        offset += inputs.T @ examples.targets / len(examples)
    return np.asarray(np.linalg.solve(curvature, offset))
