"""How a refinement varies its inputs before each step, picked by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fedge.errors import RefineError
from fedge.naming import Registry
from fedge.task import Task
from server.trainer.spec import RefineSpec


class Augmentation(Protocol):
    """Turns inputs into others that mean the same."""

    def vary(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return one variation of each input, ``[B, ...]``; equal generators draw equal ones."""
        ...


AUGMENTATIONS: Registry[Callable[[Task, RefineSpec], Augmentation | None]] = Registry(
    "refinement augmentation"
)


@AUGMENTATIONS.register("none")
def leave(task: Task, spec: RefineSpec) -> None:
    """Train on the inputs as they are."""


@AUGMENTATIONS.register("affine")
class Affine:
    """Images turned, zoomed and moved at random, bilinear, with zeros around them.

    Raises:
        RefineError: the task's inputs are no images ``[C, H, W]``.
    """

    def __init__(self, task: Task, spec: RefineSpec) -> None:
        if len(task.input_shape) != 3:
            raise RefineError(
                f"refine.augmentation = affine varies images [C, H, W]; task {task.name} has "
                f"inputs of shape {list(task.input_shape)}"
            )
        self._turn = math.radians(spec.max_turn_deg)
        self._zoom = spec.max_zoom
        self._shift = spec.max_shift

    def vary(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return images ``[B, C, H, W]``."""
        draws = torch.rand(4, len(inputs), generator=generator) * 2 - 1
        turn, zoom = self._turn * draws[0], 1 + self._zoom * draws[1]
        cosine, sine = torch.cos(turn) / zoom, torch.sin(turn) / zoom
        across, down = 2 * self._shift * draws[2:]  # a side is 2 long for `affine_grid`
        rows = torch.stack([cosine, -sine, across, sine, cosine, down], dim=1)
        grid = functional.affine_grid(
            rows.reshape(-1, 2, 3), list(inputs.shape), align_corners=False
        )
        return functional.grid_sample(inputs.float(), grid, align_corners=False)


@AUGMENTATIONS.register("task")
class TaskAugmentation:
    """What the task's optional ``augment(inputs, generator)`` returns.

    Raises:
        RefineError: the task has none.
    """

    def __init__(self, task: Task, spec: RefineSpec) -> None:  # noqa: ARG002
        augment = getattr(task, "augment", None)
        if augment is None:
            raise RefineError(
                f"refine.augmentation = task needs augment(inputs, generator), which task "
                f"{task.name} does not have"
            )
        self._augment: Callable[[Tensor, torch.Generator], Tensor] = augment
        self._name = task.name

    def vary(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the task makes of them, ``[B, ...]``."""
        varied = self._augment(inputs, generator)
        if varied.shape != inputs.shape:
            raise RefineError(
                f"task {self._name}: augment made {list(varied.shape)} of {list(inputs.shape)}"
            )
        return varied
