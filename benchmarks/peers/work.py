"""The work that every side does: models, shapes and synthetic data. Imports torch alone."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor, nn

MLP, CNN, CIFAR = "mlp", "cnn", "cifar"
NUM_CLASSES = 10
INPUT_SHAPES: dict[str, tuple[int, ...]] = {
    MLP: (64,),
    CNN: (1, 28, 28),
    CIFAR: (3, 32, 32),
}


@dataclass(frozen=True)
class Work:
    """One federation and the setting of the engine that runs it; nobody evaluates.

    Attributes:
        model: ``mlp``, ``cnn`` or ``cifar``.
        num_clients: in all; those of a round train one epoch.
        num_examples: of each client; a multiple of ``batch_size``.
        num_rounds: the first one warms up and is not counted.
        num_processes: how many train side by side.
        num_threads: of torch in each of them.
        mode: how Opacus takes gradients of single examples.
        cohort_size: clients of a round; 0 takes all.
        device: torch device.
    """

    model: str
    num_clients: int
    num_examples: int
    num_rounds: int
    batch_size: int = 10
    learning_rate: float = 0.05
    num_processes: int = 1
    num_threads: int = 1
    mode: str = ""
    cohort_size: int = 0
    device: str = "cpu"

    @property
    def cohort(self) -> int:
        """Clients of a round."""
        return self.cohort_size or self.num_clients

    @property
    def setting(self) -> str:
        """Name of the engine's setting."""
        return " ".join(
            [f"{self.num_processes} x {self.num_threads}", *([self.mode] if self.mode else [])]
        )

    def to_json(self) -> str:
        """Return it as a command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Read a command-line argument."""
        return cls(**json.loads(text))


def read_argument() -> Work:
    """Return the work that the command line names."""
    return Work.from_json(sys.argv[1])


def print_rounds(seconds: list[float]) -> None:
    """Print each round's seconds as the last line; of several ranks only the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        print("\n" + json.dumps({"round_s": seconds}), flush=True)


def build_model(name: str) -> nn.Module:
    """Return a fresh model; every side has the same layers in the same order."""
    if name == MLP:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES))
    if name == CIFAR:
        return nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 14 * 14, 128),
            nn.ReLU(),
            nn.Linear(128, NUM_CLASSES),
        )
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, NUM_CLASSES),
    )


@cache
def make_data(model: str, num_clients: int, num_examples: int) -> tuple[Tensor, Tensor]:
    """Return all clients' random inputs ``[K, N, ...]`` and labels ``[K, N]``, made once."""
    generator = torch.Generator().manual_seed(0)
    size = (num_clients, num_examples)
    inputs = torch.randn((*size, *INPUT_SHAPES[model]), generator=generator)
    return inputs, torch.randint(0, NUM_CLASSES, size, generator=generator)


def data_of(work: Work) -> tuple[Tensor, Tensor]:
    """Return the data of a work's clients."""
    return make_data(work.model, work.num_clients, work.num_examples)


def start_weights(work: Work) -> list[Tensor]:
    """Return initial weights, a tensor a parameter, the same on every call."""
    torch.manual_seed(0)
    return [parameter.detach() for parameter in build_model(work.model).parameters()]
