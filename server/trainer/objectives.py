"""What a refinement minimises, picked by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from fedge.naming import Registry
from fedge.task import Task


class Objective(Protocol):
    """One loss an example."""

    def losses(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of a batch, ``[B]``."""
        ...


OBJECTIVES: Registry[Callable[[Task], Objective]] = Registry("refinement objective")


@OBJECTIVES.register("fine-tune")
class FineTune:
    """The task's own loss on proxy data."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def losses(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the task's losses of a batch, ``[B]``."""
        return self._task.loss(model(inputs), targets)
