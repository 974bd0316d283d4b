"""Small tasks for the converter: layouts that get permuted, ties, and what folds."""

import numpy as np
import torch
from torch import Tensor, nn

from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split


class Tied(nn.Module):
    """One matrix under two names, and a tensor that the graph never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 12, bias=False)
        self.decode = nn.Linear(12, 12)
        self.decode.weight = self.encode.weight
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.decode(torch.relu(self.encode(inputs)))
        return outputs


class Recurrent(nn.Module):
    """An LSTM, whose gates converters split and reorder."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.cell(inputs.reshape(-1, 4, 3))[0][:, -1])
        return outputs


def make_conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 3),
    )


def make_folding() -> nn.Module:
    """Return a model whose LayerNorm the converter multiplies into the Linear after it."""
    return nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 3))


MODELS = {"tied": Tied, "recurrent": Recurrent, "conv": make_conv, "folding": make_folding}


class Small:
    """A task of 12 inputs; the option picks the model."""

    name = "small"
    input_shape = (12,)

    def __init__(self, model: str) -> None:
        self.model = model

    def build_model(self) -> nn.Module:
        return MODELS[self.model]()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        raise NotImplementedError

    def client_data(self, client: int, num_clients: int) -> Examples:
        raise NotImplementedError

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        raise NotImplementedError

    def cloud_data(self) -> CloudData:
        inputs = np.random.default_rng(0).random((5, 12), np.float32)
        examples = Examples(inputs, np.zeros(5, np.int64))
        return CloudData(examples, examples, examples)

    def edge_files(self) -> EdgeFiles | None:
        return None
