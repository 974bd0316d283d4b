"""The small models on random data that engines are timed with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from benchmarks.peers.work import INPUT_SHAPES, build_model, make_data
from benchmarks.tasks.classification import Classification
from fedge.errors import TaskError
from fedge.task import CloudData, Examples


@dataclass(frozen=True)
class SmallModel(Classification):
    """An MLP or a CNN that learns noise: the very models and data that the peers get.

    Attributes:
        model: ``mlp`` or ``cnn``.
        num_examples: of each client.
    """

    model: str
    num_clients: int
    num_examples: int

    @property
    def name(self) -> str:
        """Name of the model."""
        return f"small-{self.model}"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return INPUT_SHAPES[self.model]

    def build_model(self) -> nn.Module:
        """Return the model; 10 logits."""
        return build_model(self.model)

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one client's examples; like every side's they stay in memory.

        Raises:
            TaskError: there is no such client.
        """
        if not 0 <= client < num_clients == self.num_clients:
            raise TaskError(f"{self.name}: client {client} of {num_clients} is not there")
        inputs, targets = make_data(self.model, num_clients, self.num_examples)
        return Examples(inputs[client].numpy(), targets[client].numpy())

    def cloud_data(self) -> CloudData:
        """Return one example for each share: nothing is evaluated."""
        one = Examples(np.zeros((1, *self.input_shape), np.float32), np.zeros(1, np.int64))
        return CloudData(proxy=one, gate=one, test=one)
