"""Activations, dropout, and layers that only change a tensor's shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedge.training.fused.chain import Rows
from fedge.training.fused.layers import STEPS, NoStep, Plain, Slot, Step

aten = torch.ops.aten

MONOTONE = (nn.ReLU, nn.Tanh, nn.Sigmoid)
"""Activations that a max pooling may go before: the largest stays the largest."""


@STEPS.register("ReLU")
class ReLUStep(Plain):
    """``max(x, 0)``."""

    def __init__(self, _layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()
        self._y = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Cut off what is negative."""
        self._y = torch.relu(x)
        return self._y

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Pass where the output is positive."""
        passed: Tensor = aten.threshold_backward.default(grad, self._y, 0)
        return passed


class ByOutput(Plain):
    """An activation whose gradient follows from its output."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self._function, self._derivative = function, derivative
        self._y = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        self._y = self._function(x)
        return self._y

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Apply the derivative."""
        return self._derivative(grad, self._y)


class ByInput(ByOutput):
    """An activation whose gradient follows from its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function, and keep the input in the output's place."""
        self._y = x
        return self._function(x)


@STEPS.register("Tanh")
def tanh(_layer: nn.Module, _slots: dict[str, Slot]) -> Step:
    """Return the step of a Tanh."""
    return ByOutput(torch.tanh, aten.tanh_backward)


@STEPS.register("Sigmoid")
def sigmoid(_layer: nn.Module, _slots: dict[str, Slot]) -> Step:
    """Return the step of a Sigmoid."""
    return ByOutput(torch.sigmoid, aten.sigmoid_backward)


@STEPS.register("SiLU")
def silu(_layer: nn.Module, _slots: dict[str, Slot]) -> Step:
    """Return the step of a SiLU."""
    return ByInput(nn.functional.silu, aten.silu_backward)


@STEPS.register("GELU")
def gelu(layer: nn.Module, _slots: dict[str, Slot]) -> Step:
    """Return the step of a GELU."""
    form = str(layer.approximate)
    return ByInput(
        lambda x: nn.functional.gelu(x, approximate=form),
        lambda grad, x: aten.gelu_backward(grad, x, approximate=form),
    )


@STEPS.register("LeakyReLU")
def leaky_relu(layer: nn.Module, _slots: dict[str, Slot]) -> Step:
    """Return the step of a LeakyReLU."""
    slope = float(layer.negative_slope)  # type: ignore[arg-type]
    return ByInput(
        lambda x: nn.functional.leaky_relu(x, slope),
        lambda grad, x: aten.leaky_relu_backward(grad, x, slope, False),
    )


@STEPS.register("Dropout")
class DropoutStep(Plain):
    """Zeros at random, drawn from torch's generator as `torch.nn.Dropout` draws them."""

    def __init__(self, layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()
        self._keep = 1.0 - float(layer.p)  # type: ignore[arg-type]
        if self._keep == 0:
            raise NoStep("drops everything")
        self.is_random = self._keep < 1
        self._mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop values and scale up what is left."""
        if self._keep == 1:
            return x
        # Drawn in the order of a contiguous tensor, whatever format x has; of one client.
        self._mask = torch.empty(x.shape).bernoulli_(self._keep).div_(self._keep)
        return x * self._mask

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Drop the same."""
        return grad if self._mask is None else grad * self._mask


@STEPS.register("Flatten")
class FlattenStep(Plain):
    """Each example's values as one row, or some of its dimensions as one."""

    def __init__(self, layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()
        start, end = int(layer.start_dim), int(layer.end_dim)  # type: ignore[arg-type]
        if start == 0:
            raise NoStep("mixes the examples of a batch")
        # Dimensions are one further on; those from the end stay.
        self._dims = (start + (start > 0), end + (end >= 0))
        self._x = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Reshape; a copy where the memory format needs one."""
        self._x = x
        return x.flatten(*self._dims)

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Reshape back, in the inputs' memory format, which the layers before work in."""
        return torch.empty_like(self._x).copy_(grad.reshape(self._x.shape))


@STEPS.register("Rows")
class RowsStep(Plain):
    """``x.view(-1, width)`` of examples with so many values."""

    def __init__(self, layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()
        assert isinstance(layer, Rows)
        self._width = layer.width
        self._shape: torch.Size = torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        """Reshape, or refuse to spread one example over several rows."""
        self._shape = x.shape
        if x[0, 0].numel() != self._width:
            raise NoStep(f"x.view(-1, {self._width}) mixes the examples of a batch")
        return x.flatten(2) if x.dim() > 3 else x

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Reshape back."""
        return grad.reshape(self._shape)


@STEPS.register("Identity")
class IdentityStep(Plain):
    """Nothing."""

    def __init__(self, _layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient."""
        return grad
