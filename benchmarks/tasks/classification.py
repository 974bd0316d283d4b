"""What every benchmark task that names one class an example has in common."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedge.task import EdgeFiles, Examples, SampleStore, Split


class Classification:
    """Cross-entropy, accuracy, samples as they are stored, and no shipped TFLite model."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one cross-entropy an example, ``[B]``."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the accuracy of a batch."""
        return {"accuracy": (outputs.argmax(dim=1) == targets).double().mean().item()}

    def device_data(self, store: SampleStore, split: Split) -> Examples:
        """Return what a store holds, as it is."""
        return store.labelled(split)

    def edge_files(self) -> EdgeFiles | None:
        """Return None: where a device is to serve this model, the server converts it."""
        return None
