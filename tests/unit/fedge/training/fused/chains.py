"""Chains of layers and cohorts of small images for the tests of the fused backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.tasks.digits import Digits
from fedge.training.batch_plan import plan_batches
from fedge.training.cohort_contracts import BACKENDS, Batches, CohortMember, CohortSettings, Outcome
from fedge.training.fused.backend import FusedBackend
from fedge.training.local import LocalTrainer
from fedge.training.sgd import trained_parameters

NUM_CLASSES = 4


def cnn() -> nn.Module:
    """The benchmark's shape of model, smaller: as many channels as fill a vector."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 9, 12),
        nn.ReLU(),
        nn.Linear(12, NUM_CLASSES),
    )


class LeNet(nn.Module):
    """Few channels, and a forward pass in the user's own words."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 5, 3)
        self.hidden, self.last = nn.Linear(5, 8), nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(torch.relu(self.second(x)), (2, 2))
        outputs: Tensor = self.last(F.relu(self.hidden(x.view(x.size(0), -1))))
        return outputs


def smooth() -> nn.Module:
    """Most of the other layers."""
    return nn.Sequential(
        nn.Identity(),
        nn.Conv2d(1, 4, 3, stride=2, padding=1, dilation=2, bias=False),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.MaxPool2d(3, 1, padding=1),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.SiLU(),
        nn.AvgPool2d(2, 1),
        nn.Sequential(nn.GELU(), nn.Dropout(0.3), nn.Flatten()),
        nn.LayerNorm(36),
        nn.Linear(36, 6, bias=False),
        nn.LeakyReLU(),
        nn.Linear(6, 5),
        nn.Sigmoid(),
        nn.Dropout(0.0),
        nn.Linear(5, NUM_CLASSES),
    )


def partly_frozen() -> nn.Module:
    """The first layer, a bias and a scale in the middle are not trained."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 3, 2),
        nn.GroupNorm(1, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, NUM_CLASSES),
    )
    for name in ("0.weight", "0.bias", "3.bias", "4.weight"):
        model.get_parameter(name).requires_grad = False
    return model


@dataclass(frozen=True)
class Images(Digits):
    """Any model over images of 12 × 12."""

    model: Callable[[], nn.Module] = cnn

    def build_model(self) -> nn.Module:
        return self.model()


def images(size: int, seed: int, shape: Sequence[int] = (1, 12, 12)) -> Examples:
    """Return noise with a blank band, where convolutions tie."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(size, *shape)).astype(np.float32)
    inputs[..., :3] = 0
    return Examples(inputs, random.integers(0, NUM_CLASSES, size))


def backend(task: Digits, settings: CohortSettings | None = None) -> FusedBackend:
    """Return the backend for a task's own model."""
    trainer = LocalTrainer(task)
    made = BACKENDS["fused"](task, trainer._model, trainer.layout, settings or CohortSettings())
    assert isinstance(made, FusedBackend)
    return made


def train(task: Digits, members: Sequence[CohortMember], hyper: Hyperparameters) -> list[Outcome]:
    """Train members by the backend from the weights of seed 0."""
    local = LocalTrainer(task)
    trained = sum(value.numel() for value in trained_parameters(local._model))
    planned = plan_batches(members, local.layout, hyper, trained)
    batches = [batch for batch in planned if isinstance(batch, Batches)]
    return backend(task).train(local.initial_weights(0), batches, hyper)


def members(sizes: Sequence[int], shape: Sequence[int] = (1, 12, 12)) -> list[CohortMember]:
    """Return members of these sizes; made again they draw the same."""
    return [
        CohortMember(images(size, seed, shape), Draws.seeded(100 + seed))
        for seed, size in enumerate(sizes)
    ]
