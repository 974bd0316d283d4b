"""A million clients with label skew, whose data are made when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError
from fedge.rng import stream
from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split
from simulation.partition.draws import MAX_SIGMA, draw_shares, draw_size

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Synthetic:
    """Class-conditional Gaussians: an example is its class's mean plus standard normal noise.

    A client's size is log-normal, its label proportions are Dirichlet, and both come with its
    examples from one stream of its own: no client costs anything before it is asked, and their
    number changes nobody's data.

    Attributes:
        hidden: units of the model's hidden layer.
        alpha: Dirichlet concentration a label; small is far from IID.
        mean_examples: mean size of a client.
        size_sigma: standard deviation of the logarithm of a client's size; 0 makes all equal.
        separation: standard deviation of the entries of a class mean; large is easy.
        feature_shift: standard deviation of what is added to all of a client's inputs, one
            number a feature.
        num_proxy, num_gate, num_test: examples of the cloud's shares, classes equally likely.

    Raises:
        TaskError: a value is out of range.
    """

    seed: int = 0
    num_classes: int = 10
    num_features: int = 64
    hidden: int = 64
    alpha: float = 0.5
    mean_examples: int = 50
    size_sigma: float = 0.3
    separation: float = 0.3
    feature_shift: float = 0.0
    num_proxy: int = 500
    num_gate: int = 500
    num_test: int = 2000

    name = "synthetic"

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        least = {
            "num_classes": 2,
            "num_features": 1,
            "hidden": 1,
            "mean_examples": _SMALLEST_CLIENT,
            "num_proxy": 1,
            "num_gate": 1,
            "num_test": 1,
        }
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise TaskError(f"synthetic: {key} must be >= {bound}, got {getattr(self, key)}")
        if not 0 <= self.size_sigma <= MAX_SIGMA:
            raise TaskError(
                f"synthetic: size_sigma must be >= 0 and <= {MAX_SIGMA:g}, got {self.size_sigma}"
            )
        if not 0 < self.alpha < np.inf:
            raise TaskError(f"synthetic: alpha must be > 0 and finite, got {self.alpha}")
        for key in ("separation", "feature_shift"):
            if not 0 <= getattr(self, key) < np.inf:
                raise TaskError(f"synthetic: {key} must be >= 0, got {getattr(self, key)}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (self.num_features,)

    def build_model(self) -> nn.Module:
        """Return an MLP with one hidden layer; inputs ``[B, F]`` float32, logits ``[B, C]``."""
        from torch import nn

        return nn.Sequential(
            nn.Linear(self.num_features, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.num_classes),
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one cross-entropy an example, ``[B]``."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy of a batch."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).double().mean().item()}

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one client's examples, in the order of their labels.

        Raises:
            TaskError: there is no such client.
        """
        rng = self._client_stream(client, num_clients)
        size = self._size(rng)
        shares = draw_shares(rng, self._alphas)
        targets = np.repeat(self._classes, rng.multinomial(size, shares))
        examples = self._draw(rng, targets)
        if not self.feature_shift:
            return examples
        offset = rng.standard_normal(self.num_features, np.float32)
        return Examples(examples.inputs + np.float32(self.feature_shift) * offset, targets)

    def num_examples(self, client: int, num_clients: int) -> int:
        """Return how many examples a client has, without making them."""
        return self._size(self._client_stream(client, num_clients))

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Return what a store holds, as it is."""
        return store.labelled(split)

    def cloud_data(self) -> CloudData:
        """Return three draws of their own from the same class means."""
        return CloudData(
            proxy=self._draw_cloud("proxy", self.num_proxy),
            gate=self._draw_cloud("gate", self.num_gate),
            test=self._draw_cloud("test", self.num_test),
        )

    def edge_files(self) -> EdgeFiles | None:
        """Return None: no device serves this model."""
        return None

    @cached_property
    def _means(self) -> Floats:
        """Mean of each class, ``[C, F]``."""
        shape = (self.num_classes, self.num_features)
        rng = stream(self.seed, "synthetic-means")
        return np.float32(self.separation) * rng.standard_normal(shape, np.float32)

    @cached_property
    def _alphas(self) -> npt.NDArray[np.float64]:
        return np.full(self.num_classes, self.alpha)

    @cached_property
    def _classes(self) -> npt.NDArray[np.int64]:
        return np.arange(self.num_classes)

    def _client_stream(self, client: int, num_clients: int) -> np.random.Generator:
        if not 0 <= client < num_clients:
            raise TaskError(f"synthetic: client {client} is not one of 0..{num_clients - 1}")
        return stream(self.seed, "synthetic-client", client=client)

    def _size(self, rng: np.random.Generator) -> int:
        return draw_size(rng, self.mean_examples, self.size_sigma, _SMALLEST_CLIENT)

    def _draw_cloud(self, share: str, size: int) -> Examples:
        rng = stream(self.seed, f"synthetic-{share}")
        return self._draw(rng, rng.integers(self.num_classes, size=size))

    def _draw(self, rng: np.random.Generator, targets: npt.NDArray[np.int64]) -> Examples:
        inputs = rng.standard_normal((len(targets), self.num_features), np.float32)
        inputs += self._means.take(targets, axis=0)
        return Examples(inputs, targets)


_SMALLEST_CLIENT = 2
