"""Losses and metrics of a model over examples, in evaluation mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.task import Examples, Task
from fedge.training.batches import check_losses

_BATCH_SIZE = 512

Values = npt.NDArray[np.float64]


def mean_metrics(model: nn.Module, task: Task, examples: Examples) -> dict[str, float]:
    """Return the mean ``loss`` and the task's metrics over all examples.

    Raises:
        TaskError: there are no examples.
    """
    if len(examples) == 0:
        raise TaskError("there are no examples to evaluate on")
    sums: dict[str, float] = {}
    for outputs, targets in _predictions(model, examples):
        losses = check_losses(task.loss(outputs, targets), len(targets))
        batch = {"loss": losses.double().mean().item(), **task.metrics(outputs, targets)}
        for name, value in batch.items():
            sums[name] = sums.get(name, 0.0) + value * len(targets)
    return {name: total / len(examples) for name, total in sums.items()}


def example_losses(model: nn.Module, task: Task, examples: Examples) -> Values:
    """Return each example's loss, ``[N]``."""
    parts = [
        check_losses(task.loss(outputs, targets), len(targets)).double().numpy()
        for outputs, targets in _predictions(model, examples)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _predictions(model: nn.Module, examples: Examples) -> Any:
    """Yield outputs and targets batch by batch."""
    model.eval()
    for start in range(0, len(examples), _BATCH_SIZE):
        batch = examples.subset(np.arange(start, min(start + _BATCH_SIZE, len(examples))))
        targets: Tensor = torch.from_numpy(batch.targets)
        with torch.no_grad():
            yield model(torch.from_numpy(batch.inputs)), targets
