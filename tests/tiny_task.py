"""A task that is learnt in milliseconds: which of three corners a noisy point is near."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fedge.rng import stream
from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split

NUM_INPUTS, NUM_HIDDEN, NUM_CLASSES = 4, 8, 3


@dataclass(frozen=True)
class TinyTask:
    """An MLP 4-8-3 on synthetic data.

    Attributes:
        width: hidden units.
        dropout: probability between the layers.
        loss_s: seconds that each computation of the loss takes longer, to be interrupted in.
        bug: raise in the loss, as a task's own code might.
    """

    seed: int = 0
    num_proxy: int = 40
    num_gate: int = 30
    num_client: int = 24
    width: int = NUM_HIDDEN
    dropout: float = 0.0
    loss_s: float = 0.0
    bug: bool = False

    name = "tiny"
    input_shape = (NUM_INPUTS,)

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(NUM_INPUTS, self.width),
            nn.Tanh(),
            nn.Dropout(self.dropout),
            nn.Linear(self.width, NUM_CLASSES),
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.bug:
            raise RuntimeError("no such thing")
        if self.loss_s:
            time.sleep(self.loss_s)
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": (outputs.argmax(dim=1) == targets).double().mean().item()}

    def client_data(self, client: int, num_clients: int) -> Examples:
        return self._draw("client", self.num_client, client)

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        return store.labelled(split)

    def cloud_data(self) -> CloudData:
        return CloudData(
            proxy=self._draw("proxy", self.num_proxy),
            gate=self._draw("gate", self.num_gate),
            test=self._draw("test", self.num_gate),
        )

    def edge_files(self) -> EdgeFiles | None:
        return None

    def _draw(self, purpose: str, num_examples: int, client: int = 0) -> Examples:
        corners = 2 * np.eye(NUM_CLASSES, NUM_INPUTS)
        rng = stream(self.seed, f"tiny-{purpose}", client=client)
        targets = rng.integers(NUM_CLASSES, size=num_examples)
        noise = 0.5 * rng.normal(size=(num_examples, NUM_INPUTS))
        return Examples((corners[targets] + noise).astype(np.float32), targets)
