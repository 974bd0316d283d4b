"""Steps of a program: layers with their forward and backward passes written out.

A program trains K clients side by side, each with weights of its own. What goes from step to
step has the shape ``[K, B, ...]`` and any memory format. Steps work without autograd; what
`forward` computed is kept for the `backward` that follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.naming import Registry


class NoStep(TaskError):
    """A layer has options that no step knows; the text says which."""


class Slot:
    """One parameter of all clients in work.

    Args:
        values: ``[K, ...]``, a view of the program's weights.
        gradients: the same of its gradients; None for a frozen parameter.

    Attributes:
        value, gradient: those of the clients that still train.
    """

    def __init__(self, values: Tensor, gradients: Tensor | None) -> None:
        self._values, self._gradients = values, gradients
        self.value, self.gradient = values, gradients

    def activate(self, num_clients: int) -> None:
        """Go on with the first clients only."""
        self.value = self._values[:num_clients]
        if self._gradients is not None:
            self.gradient = self._gradients[:num_clients]


class Step(Protocol):
    """One layer of a chain.

    Attributes:
        slots: its parameters, by their name in the layer.
        is_random: whether it draws from torch's generator, so that clients must not be mixed.
    """

    slots: dict[str, Slot]
    is_random: bool

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs."""
        ...

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Set the slots' gradients, summed over examples; return the inputs' where needed."""
        ...

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return each example's squared gradient norm, ``[K, B]``, and the inputs' gradient.

        None for norms: the layer trains nothing.
        """
        ...

    def weighted(self, coefficients: Tensor) -> None:
        """Set the slots' gradients to the sum of the examples' times these, ``[K, B]``."""
        ...


class Plain(ABC):
    """A step without parameters: what it need not say itself."""

    is_random = False

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Return the inputs' gradient."""
        return self.input_gradient(grad) if needs_input else None

    @abstractmethod
    def input_gradient(self, grad: Tensor) -> Tensor:
        """Return the inputs' gradient."""

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Nothing is trained, so nothing adds to a norm."""
        return None, self.backward(grad, needs_input)

    def weighted(self, coefficients: Tensor) -> None:  # noqa: B027 - most layers train nothing
        """Nothing is trained."""


MakeStep = Callable[[nn.Module, dict[str, Slot]], Step]

STEPS: Registry[MakeStep] = Registry("fused layer")
"""By the layer's class name; only layers of `torch.nn` themselves, no subclass, are looked up."""


def example_squares(gradients: Tensor) -> Tensor:
    """Return the squared norm of each example's gradient, ``[K, B, ...]`` to ``[K, B]``."""
    rows = gradients.flatten(2)
    return (rows * rows).sum(2)


def weighted_sum(gradients: Tensor, coefficients: Tensor, out: Tensor | None) -> None:
    """Write the sum of the examples' gradients, ``[K, B, ...]``, times their coefficients."""
    if out is not None:
        sums = torch.bmm(coefficients[:, None], gradients.flatten(2))
        out.copy_(sums.view(out.shape))


def as_images(x: Tensor) -> Tensor:
    """Return ``[K, B, C, H, W]`` as ``[B, K · C, H, W]``, channels last; a view if it can be."""
    clients, batch, channels, height, width = x.shape
    shape = (batch, clients * channels, height, width)
    strides = _channels_last(shape)
    # One view, for what `from_images` made: between large products every operation counts.
    if x.stride() == (channels, strides[0], *strides[1:]):
        return x.as_strided(shape, strides)
    images = x.transpose(0, 1).flatten(1, 2)
    if shape[1] == 1:
        # One channel has both formats at once: say which, or oneDNN answers in the other.
        return images.contiguous().as_strided(shape, strides)
    return images.contiguous(memory_format=torch.channels_last)


def from_images(images: Tensor, num_clients: int) -> Tensor:
    """Return ``[B, K · C, H, W]`` as a view ``[K, B, C, H, W]``."""
    batch, channels, height, width = images.shape
    each = channels // num_clients
    across, step, *inner = images.stride()
    return images.as_strided(
        (num_clients, batch, each, height, width), (each * step, across, step, *inner)
    )


def _channels_last(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    _, channels, height, width = shape
    return (channels * height * width, 1, channels * width, channels)
