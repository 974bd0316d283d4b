"""Handwritten digits, 8×8 pixels: the embedded default task, small enough for a first minute.

The 1797 images come with scikit-learn, so nothing is downloaded. Torch and scikit-learn are
imported where they are needed: a device that only predicts has neither.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError
from fedge.rng import stream
from fedge.task import CloudData, EdgeFiles, Examples, SampleStore, Split

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_PIXELS = 64
NUM_CLASSES = 10
_MAX_PIXEL = 16.0
_DRAWS_PER_MINIMUM = 100
_EDGE_FOLDER = Path(__file__).parent / "digits_edge"

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Digit recognition; the seed draws disjoint proxy, gate, test and client shares.

    Clients differ in what they see: each label is dealt to them in Dirichlet proportions. A draw
    that leaves a client fewer than half of an equal share is drawn again, so that DP training is
    possible everywhere; after every 100 draws in vain that minimum is halved.

    Attributes:
        num_proxy, num_gate, num_test: images of the cloud's shares, each label equally often.
        alpha: concentration of the Dirichlet draw; small is far from IID.
        width, depth: units of a hidden layer, and hidden layers.
    """

    seed: int = 0
    num_proxy: int = 80
    num_gate: int = 80
    num_test: int = 300
    alpha: float = 0.3
    width: int = 64
    depth: int = 1

    name = "digits"
    input_shape = (NUM_PIXELS,)

    def __post_init__(self) -> None:
        """Refuse a seed, shares and an alpha that cannot be drawn."""
        if not isinstance(self.seed, int) or self.seed < 0:
            raise TaskError(f"digits: seed must be a whole number >= 0, got {self.seed!r}")
        for key in ("num_proxy", "num_gate", "num_test", "width", "depth"):
            if getattr(self, key) < 1:
                raise TaskError(f"digits: {key} must be >= 1, got {getattr(self, key)}")
        if not self.alpha > 0:
            raise TaskError(f"digits: alpha must be > 0, got {self.alpha}")

    def build_model(self) -> nn.Module:
        """Return an MLP; inputs ``[B, 64]`` float32 in [0, 1], logits ``[B, 10]``."""
        from torch import nn

        widths = (NUM_PIXELS, *[self.width] * self.depth)
        hidden = [
            layer
            for fan_in, fan_out in itertools.pairwise(widths)
            for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())
        ]
        return nn.Sequential(*hidden, nn.Linear(self.width, NUM_CLASSES))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one cross-entropy an example, ``[B]``."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy of a batch."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).double().mean().item()}

    def client_data(self, client: int, num_clients: int) -> Examples:
        """Return one client's images.

        Raises:
            TaskError: there is no such client, or too many for the images that are left.
        """
        if not 0 <= client < num_clients:
            raise TaskError(f"digits: client {client} is not one of 0..{num_clients - 1}")
        return self._images.subset(self._clients(num_clients)[client])

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Return the device's own labelled images.

        Raises:
            TaskError: the stored samples are not 64 pixels with a label of 0 to 9.
        """
        stored = store.labelled(split)
        if len(stored) == 0:
            return Examples(np.zeros((0, NUM_PIXELS), np.float32), np.zeros(0, np.int64))
        inputs = np.asarray(stored.inputs, np.float32).reshape(len(stored), -1)
        labels = np.asarray(stored.targets).reshape(-1)
        if inputs.shape[1] != NUM_PIXELS or len(labels) != len(stored):
            raise TaskError(
                f"digits: a stored sample has {inputs.shape[1]} values and "
                f"{len(labels) / len(stored):g} labels; expected {NUM_PIXELS} and 1"
            )
        targets = labels.astype(np.int64)
        if not np.isin(labels, np.arange(NUM_CLASSES)).all():
            raise TaskError(
                f"digits: stored labels run from {labels.min()} to {labels.max()}; "
                f"allowed are the whole numbers 0 to {NUM_CLASSES - 1}"
            )
        return Examples(inputs, targets)

    def cloud_data(self) -> CloudData:
        """Return the proxy, gate and test images."""
        proxy, gate, test, _ = self._shares
        images = self._images
        return CloudData(images.subset(proxy), images.subset(gate), images.subset(test))

    def edge_files(self) -> EdgeFiles | None:
        """Return the shipped template and plan; None for other sizes, or where left out."""
        if (self.width, self.depth) != (Digits.width, Digits.depth):
            return None
        files = EdgeFiles(_EDGE_FOLDER / "template.tflite", _EDGE_FOLDER / "plan.json")
        return files if files.template.is_file() and files.plan.is_file() else None

    @property
    def _images(self) -> Examples:
        return _load_images()

    @cached_property
    def _shares(self) -> tuple[Index, Index, Index, Index]:
        """Positions of the proxy, gate and test images and of all that is left, disjoint."""
        left = self._deal_labels(self._images.targets)
        sizes = (self.num_proxy, self.num_gate, self.num_test)
        if sum(sizes) >= len(left):
            raise TaskError(
                f"digits: num_proxy + num_gate + num_test is {sum(sizes)}, which leaves the "
                f"clients none of the {len(left)} images"
            )
        proxy, gate, test, rest = np.split(left, np.cumsum(sizes))
        return proxy, gate, test, rest

    def _deal_labels(self, targets: Index) -> Index:
        """Return all positions shuffled, labels taking turns: any prefix is stratified."""
        order = stream(self.seed, "digits-shares").permutation(len(targets))
        turn = np.empty(len(targets), np.int64)
        for label in range(NUM_CLASSES):
            turn[targets[order] == label] = np.arange(np.count_nonzero(targets == label))
        return order[np.argsort(turn, kind="stable")]

    @cached_property
    def _dealt(self) -> dict[int, list[Index]]:
        """What was dealt last, by the number of clients."""
        return {}

    def _clients(self, num_clients: int) -> list[Index]:
        """Return each client's positions, dealt once for as long as their number is the same."""
        if num_clients not in self._dealt:
            dealt = self._split_clients(num_clients)
            self._dealt.clear()
            self._dealt[num_clients] = dealt
        return self._dealt[num_clients]

    def _split_clients(self, num_clients: int) -> list[Index]:
        """Deal what is left to clients, label by label; the same for every caller."""
        rest = self._shares[3]
        targets = self._images.targets[rest]
        label_counts = np.bincount(targets, minlength=NUM_CLASSES)
        ends = self._draw_ends(label_counts, num_clients)
        by_label = [
            np.split(rest[targets == label], ends[label, :-1]) for label in range(NUM_CLASSES)
        ]
        return [
            np.concatenate([shares[client] for shares in by_label]) for client in range(num_clients)
        ]

    def _draw_ends(self, label_counts: Index, num_clients: int) -> Index:
        """Return where each client's share of each label ends, ``[labels, clients]``."""
        rng = stream(self.seed, "digits-clients")
        minimum = int(label_counts.sum()) // (2 * num_clients)
        while minimum >= 1:
            for _ in range(_DRAWS_PER_MINIMUM):
                shares = rng.dirichlet(np.full(num_clients, self.alpha), size=NUM_CLASSES)
                ends = np.rint(shares.cumsum(axis=1) * label_counts[:, None]).astype(np.int64)
                ends[:, -1] = label_counts
                if np.diff(ends, axis=1, prepend=0).sum(axis=0).min() >= minimum:
                    return ends
            minimum //= 2
        raise TaskError(
            f"digits: {label_counts.sum()} images at alpha {self.alpha:g} do not give each of "
            f"{num_clients} clients one; take fewer clients or a larger alpha"
        )


@cache
def _load_images() -> Examples:
    """Return all images, ``[1797, 64]`` in [0, 1], and labels.

    Source: UCI optical recognition of handwritten digits, test part, as scikit-learn ships it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TaskError(
            "the digits task takes its images from scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from error
    bunch: Any = load_digits()
    return Examples(
        (bunch.data / _MAX_PIXEL).astype(np.float32), np.asarray(bunch.target, np.int64)
    )
