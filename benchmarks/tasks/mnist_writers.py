"""MNIST split by who wrote the digits: natural clients, and a cloud of writers of its own.

The files lie beside the project in ``../shared/data/mnist`` and are not part of it.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.harness import CannotRun
from benchmarks.tasks.classification import Classification
from fedge.errors import TaskError
from fedge.rng import stream
from fedge.task import CloudData, Examples
from fedge.training.local import LocalTrainer
from server.checkpoint import CheckpointStore

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
SIDE = 28
NUM_CLASSES = 10
NUM_TEST_A_ROUND = 500
"""Test images for the rounds of a benchmark whose figure comes of all of them, at the end."""
WRITER_COLUMN = 2
_IMAGE_HEADER, _LABEL_HEADER, _QMNIST_HEADER = 16, 8, 12
_QMNIST_COLUMNS = 8

Index = npt.NDArray[np.int64]


class ChannelsLast(nn.Module):
    """Lays channels out last: on a CPU, training is a quarter faster and predicting twice."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the same values in the other order of memory."""
        try:
            return inputs.contiguous(memory_format=torch.channels_last)
        except RuntimeError:  # under vmap (DP-SGD) torch knows one order only
            return inputs


@dataclass(frozen=True)
class MnistWriters(Classification):
    """Digit recognition, 28×28, a writer a client.

    Some of the 539 training writers belong to the cloud and are no clients: half of them wrote
    the proxy images, the other half the gate images. The test set is MNIST's own 10,000 images,
    by writers that nobody trains on.

    Attributes:
        seed: draws the cloud's writers and images.
        num_proxy, num_gate: images of the cloud's shares.
        cloud_classes: proxy and gate images show the first so many digits alone.
        num_test: the first so many of the test images; all 10,000 take a third of a run's time
            when each round is tested on them.
        num_cloud_writers: training writers that are no clients.
        writers_a_client: so many writers share one client.

    Raises:
        CannotRun: MNIST is not there.
    """

    seed: int = 0
    num_proxy: int = 600
    num_gate: int = 600
    cloud_classes: int = NUM_CLASSES
    num_test: int = 10_000
    num_cloud_writers: int = 24
    writers_a_client: int = 1

    name = "mnist-writers"
    input_shape = (1, SIDE, SIDE)

    def __post_init__(self) -> None:
        """Refuse to begin without the files."""
        check_folder()

    @property
    def num_clients(self) -> int:
        """Clients there are writers for."""
        return len(self._writers[1]) // self.writers_a_client

    def build_model(self) -> nn.Module:
        """Return a CNN of 114k parameters; inputs ``[B, 1, 28, 28]`` in [0, 1], 10 logits."""
        # Pooling before the ReLU gives the same values and a quarter of the work.
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            ChannelsLast(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (SIDE // 4) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, NUM_CLASSES),
        )

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return images of one client's writers; fewer clients are the first of them.

        Raises:
            TaskError: there is no such client.
        """
        if not 0 <= client < num_clients <= self.num_clients:
            raise TaskError(
                f"mnist-writers: client {client} of {num_clients} is not one of {self.num_clients}"
            )
        first = client * self.writers_a_client
        writers = self._writers[1][first : first + self.writers_a_client]
        images = np.concatenate([_images_by_writer()[writer] for writer in writers])
        return load_mnist("train").subset(images)

    def cloud_data(self) -> CloudData:
        """Return proxy and gate images, each by writers of its own, and MNIST's test set."""
        cloud = self._writers[0]
        half = len(cloud) // 2
        return CloudData(
            proxy=self._draw("proxy", cloud[:half], self.num_proxy),
            gate=self._draw("gate", cloud[half:], self.num_gate),
            test=load_mnist("t10k").subset(np.arange(self.num_test)),
        )

    def accuracy(self, run_dir: Path) -> float:
        """Return the accuracy of a run's last weights on all test images."""
        last = CheckpointStore(run_dir / "checkpoints").latest()
        if last is None:
            raise TaskError(f"mnist-writers: {run_dir} has no checkpoint")
        return LocalTrainer(self).evaluate(last.weights, load_mnist("t10k"))["accuracy"]

    @cached_property
    def _writers(self) -> tuple[Index, Index]:
        """Writers of the cloud, in random order, and of the clients, in order."""
        writers = np.array(sorted(_images_by_writer()))
        order = stream(self.seed, "mnist-cloud").permutation(writers)
        return order[: self.num_cloud_writers], np.sort(order[self.num_cloud_writers :])

    def _draw(self, share: str, writers: Index, num_images: int) -> Examples:
        by_writer = _images_by_writer()
        images = np.concatenate([by_writer[writer] for writer in writers])
        if self.cloud_classes < NUM_CLASSES:
            images = images[load_mnist("train").targets[images] < self.cloud_classes]
        if num_images > len(images):
            raise TaskError(
                f"mnist-writers: num_{share} is {num_images}, its {len(writers)} writers wrote "
                f"{len(images)} of these digits: raise num_cloud_writers"
            )
        drawn = stream(self.seed, f"mnist-{share}").choice(images, num_images, replace=False)
        return load_mnist("train").subset(drawn)


def check_folder() -> None:
    """Refuse to begin without the files.

    Raises:
        CannotRun: MNIST is not there.
    """
    if not FOLDER.is_dir():
        raise CannotRun(f"{FOLDER} is not there: MNIST by writer lies beside the project")


@cache
def load_mnist(part: str) -> Examples:
    """Return all images of a part, ``[N, 1, 28, 28]`` float32 in [0, 1], and labels."""
    images = _read(f"{part}-images-idx3-ubyte.gz", _IMAGE_HEADER).reshape(-1, 1, SIDE, SIDE)
    labels = _read(f"{part}-labels-idx1-ubyte.gz", _LABEL_HEADER)
    return Examples(images.astype(np.float32) / np.float32(255), labels.astype(np.int64))


@cache
def _images_by_writer() -> dict[int, Index]:
    """Return the positions of each training writer's images."""
    content = _read("qmnist-train-labels-idx2-int.gz", _QMNIST_HEADER)
    writers = content.view(">i4").reshape(-1, _QMNIST_COLUMNS)[:, WRITER_COLUMN]
    order = np.argsort(writers, kind="stable")
    names, starts = np.unique(writers[order], return_index=True)
    parts = np.split(order, starts[1:])
    return dict(zip(names.tolist(), parts, strict=True))


def _read(name: str, header_bytes: int) -> npt.NDArray[Any]:
    with gzip.open(FOLDER / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header_bytes)
