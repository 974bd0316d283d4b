"""A task of no data whose only purpose is a model of a wanted size, to be converted."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split

NUM_INPUTS = 64
NUM_OUTPUTS = 10


class SizedMlp:
    """An MLP 64-hidden-hidden-10.

    Args:
        hidden: 478 makes about 1 MB of weights, 1586 about 10 MB.
    """

    name = "sized-mlp"
    input_shape = (NUM_INPUTS,)

    def __init__(self, hidden: int) -> None:
        self.hidden = hidden

    def build_model(self) -> nn.Module:
        """Return a fresh model."""
        return nn.Sequential(
            nn.Linear(NUM_INPUTS, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, NUM_OUTPUTS),
        )

    def cloud_data(self) -> CloudData:
        """Return one example a share: the converter wants to see an input."""
        inputs = np.random.default_rng(0).random((1, NUM_INPUTS), np.float32)
        share = Examples(inputs, np.zeros(1, np.int64))
        return CloudData(proxy=share, gate=share, test=share)

    def edge_files(self) -> EdgeFiles | None:
        """Return None: nothing is shipped."""
        return None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Refuse: nothing is trained here."""
        raise NotImplementedError

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Refuse: nothing is measured here."""
        raise NotImplementedError

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Refuse: there are no data."""
        raise NotImplementedError

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Refuse: there are no data."""
        raise NotImplementedError
