"""Steps of a program: layers with their forward and backward passes written out.

A step works without autograd on whatever memory format it is given. What it computed in
`forward` is kept for the `backward` that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.naming import Registry


class NoStep(TaskError):
    """A layer has options that no step knows; the text says which."""


@dataclass(eq=False)
class Slot:
    """One parameter: its value and, if it is trained, its gradient, both views of flat buffers.

    Attributes:
        gradient: None for a frozen parameter.
    """

    value: Tensor
    gradient: Tensor | None


class Step(Protocol):
    """One layer of a chain.

    Attributes:
        slots: its parameters, by their name in the layer.
    """

    slots: dict[str, Slot]

    def prepare(self, inputs: Tensor) -> Tensor:
        """Bring all of a client's inputs into the form that `forward` takes; first layer only."""
        ...

    def take(self, prepared: Tensor, positions: Tensor) -> Tensor:
        """Return what `forward` takes for a batch of prepared inputs; first layer only."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's outputs."""
        ...

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Set the slots' gradients; return the inputs' where they are needed."""
        ...

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return each example's squared gradient norm, ``[B]``, and the inputs' gradient.

        `grad` is each example's own, not a mean's. None for norms: the layer trains nothing.
        """
        ...

    def weighted(self, coefficients: Tensor) -> None:
        """Set the slots' gradients to the sum of the examples' times these, ``[B]``."""
        ...


class Plain:
    """A step without parameters: what it need not say itself."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}

    def prepare(self, inputs: Tensor) -> Tensor:
        """Take inputs as they are."""
        return inputs

    def take(self, prepared: Tensor, positions: Tensor) -> Tensor:
        """Copy the batch."""
        return prepared.index_select(0, positions)

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Return the inputs' gradient."""
        return self.input_gradient(grad) if needs_input else None

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Return the inputs' gradient."""
        raise NotImplementedError

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Nothing is trained, so nothing adds to a norm."""
        return None, self.backward(grad, needs_input)

    def weighted(self, coefficients: Tensor) -> None:
        """Nothing is trained."""


MakeStep = Callable[[nn.Module, dict[str, Slot]], Step]

STEPS: Registry[MakeStep] = Registry("fused layer")
"""By the layer's class name; only layers of `torch.nn` themselves, no subclass, are looked up."""


def example_squares(gradient: Tensor) -> Tensor:
    """Return the squared norm of each example's gradient, ``[B, ...]`` to ``[B]``."""
    rows = gradient.flatten(1)
    return (rows * rows).sum(1)


def weighted_sum(gradients: Tensor, coefficients: Tensor, out: Tensor | None) -> None:
    """Write the sum of the examples' gradients times their coefficients."""
    if out is not None:
        out.copy_((coefficients @ gradients.flatten(1)).view(out.shape))
