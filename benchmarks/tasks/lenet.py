"""MNIST dealt out as NIID-Bench does, and its LeNet-like CNN."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from benchmarks.tasks.classification import Classification
from benchmarks.tasks.mnist_writers import NUM_CLASSES, SIDE, Index, check_folder, load_mnist
from fedge.errors import TaskError
from fedge.task import CloudData, Examples

IID, DIRICHLET = "iid", "dirichlet"
PARTITIONS = (IID, DIRICHLET)
MIN_IMAGES_A_CLIENT = 10
_NUM_UNUSED = 10


@dataclass(frozen=True)
class MnistLenet(Classification):
    """Digit recognition, 28×28, every training image with one of the clients.

    The cloud has no share of its own: proxy and gate images are clients' own and decide nothing,
    because nothing is refined.

    Source: Li et al. 2022, arXiv:2102.02079, section IV (partitions) and V (model).

    Attributes:
        partition: ``iid`` deals all images out equally; ``dirichlet`` deals each label in
            proportions drawn from Dirichlet(alpha).
        seed: of the partition alone; the baseline that publishes the figures takes 42.
        num_train, num_test: the first so many images of each part.
    """

    partition: str = IID
    alpha: float = 0.5
    seed: int = 42
    num_train: int = 60_000
    num_test: int = 10_000

    name = "mnist-lenet"
    input_shape = (1, SIDE, SIDE)

    def __post_init__(self) -> None:
        """Refuse an unknown partition, and to begin without the files."""
        check_folder()
        if self.partition not in PARTITIONS:
            raise TaskError(
                f"mnist-lenet: partition must be one of {', '.join(PARTITIONS)}, got "
                f"{self.partition!r}"
            )

    def build_model(self) -> nn.Module:
        """Return a CNN of 44,426 parameters; inputs ``[B, 1, 28, 28]`` in [0, 1], 10 logits."""
        # Pooling before the ReLU gives the same values and a quarter of the work.
        return nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, NUM_CLASSES),
        )

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one client's images.

        Raises:
            TaskError: there is no such client, or too many of them.
        """
        if not 0 <= client < num_clients:
            raise TaskError(f"mnist-lenet: client {client} is not one of 0..{num_clients - 1}")
        if num_clients not in self._parts:
            self._parts[num_clients] = self._deal(num_clients)
        return load_mnist("train").subset(self._parts[num_clients][client])

    def cloud_data(self) -> CloudData:
        """Return MNIST's test images, and a few training images where there must be some."""
        unused = load_mnist("train").subset(np.arange(_NUM_UNUSED))
        return CloudData(unused, unused, load_mnist("t10k").subset(np.arange(self.num_test)))

    @cached_property
    def _parts(self) -> dict[int, list[Index]]:
        return {}

    def _deal(self, num_clients: int) -> list[Index]:
        if self.num_train < num_clients * MIN_IMAGES_A_CLIENT:
            raise TaskError(
                f"mnist-lenet: {self.num_train} images do not give each of {num_clients} clients "
                f"{MIN_IMAGES_A_CLIENT}: take fewer clients"
            )
        rng = np.random.default_rng(self.seed)
        if self.partition == IID:
            return np.array_split(rng.permutation(self.num_train), num_clients)
        targets = load_mnist("train").targets[: self.num_train]
        while True:
            parts = deal_by_label(targets, num_clients, self.alpha, rng)
            if min(map(len, parts)) >= MIN_IMAGES_A_CLIENT:
                return parts


def deal_by_label(
    targets: Index, num_clients: int, alpha: float, rng: np.random.Generator
) -> list[Index]:
    """Return each client's positions: every label in proportions of its own Dirichlet draw.

    A client that has its equal share of all examples already gets none of the labels after.

    Args:
        targets: labels 0 to L - 1, ``[N]``.
        alpha: concentration; small is far from IID.
    """
    dealt: list[list[Index]] = [[] for _ in range(num_clients)]
    sizes = np.zeros(num_clients, np.int64)
    for label in range(int(targets.max()) + 1):
        positions = np.flatnonzero(targets == label)
        rng.shuffle(positions)
        shares = rng.dirichlet(np.full(num_clients, alpha))
        shares[sizes >= len(targets) / num_clients] = 0.0
        ends = (np.cumsum(shares / shares.sum()) * len(positions)).astype(np.int64)
        for client, part in enumerate(np.split(positions, ends[:-1])):
            dealt[client].append(part)
            sizes[client] += len(part)
    return [np.concatenate(parts) for parts in dealt]
