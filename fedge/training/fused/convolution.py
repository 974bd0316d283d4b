"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedge.training.fused.layers import (
    STEPS,
    NoStep,
    Plain,
    Slot,
    example_squares,
    weighted_sum,
)
from fedge.training.fused.pooling import pair

aten = torch.ops.aten

_BLOCK = 16
"""oneDNN's backward pass to the inputs is slow in channels-last unless channels fill a vector."""


@STEPS.register("Conv2d")
class ConvStep(Plain):
    """A convolution by oneDNN, in the memory format that is fastest for each of its passes."""

    def __init__(self, layer: nn.Module, slots: dict[str, Slot]) -> None:
        super().__init__()
        self._stride, self._padding, self._dilation, self._groups = conv_options(layer)
        self.slots = slots
        self._weight = slots["weight"]
        self._bias = slots.get("bias")
        self._x = self._kernel = self._each = self._sums = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        self._x = channels_last(x)
        self._kernel = self._weight.value.contiguous(memory_format=torch.channels_last)
        bias = None if self._bias is None else self._bias.value
        return torch.conv2d(
            self._x, self._kernel, bias, self._stride, self._padding, self._dilation, self._groups
        )

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Correlate with the inputs, and convolve with the turned kernel."""
        grad = channels_last(grad)
        if self._weight.gradient is not None:
            kernel = self._run(grad, self._x, self._kernel, [False, True, False])[1]
            self._weight.gradient.copy_(kernel)
        if self._bias is not None and self._bias.gradient is not None:
            torch.sum(grad, (0, 2, 3), out=self._bias.gradient)
        return self.input_gradient(grad) if needs_input else None

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Convolve with the turned kernel."""
        x, kernel = self._x, self._kernel
        if x.shape[1] % _BLOCK:
            grad, kernel = grad.contiguous(), self._weight.value
            # Only the shape and format of x are read.
            x = torch.empty(x.shape)
        return self._run(grad, x, kernel, [True, False, False])[0]

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Make each example's gradient, by a convolution with a group an example."""
        total = grad.new_zeros(len(grad))
        if self._weight.gradient is not None:
            options = self._stride, self._padding, self._dilation, self._groups
            self._each = example_kernels(grad, self._x, self._weight.value, *options)
            total += example_squares(self._each)
        if self._bias is not None and self._bias.gradient is not None:
            self._sums = grad.sum((2, 3))
            total += example_squares(self._sums)
        return total, self.input_gradient(channels_last(grad)) if needs_input else None

    def weighted(self, coefficients: Tensor) -> None:
        """Weigh each example's gradient."""
        if self._weight.gradient is not None:
            weighted_sum(self._each, coefficients, self._weight.gradient)
        if self._bias is not None:
            weighted_sum(self._sums, coefficients, self._bias.gradient)

    def _run(self, grad: Tensor, x: Tensor, kernel: Tensor, mask: list[bool]) -> list[Tensor]:
        """Return the gradients of input, kernel and bias that the mask asks for."""
        options = (self._stride, self._padding, self._dilation, False, [0, 0], self._groups)
        return aten.convolution_backward(grad, x, kernel, [0], *options, mask)  # type: ignore[no-any-return]


def conv_options(layer: nn.Module) -> tuple[list[int], list[int], list[int], int]:
    """Return stride, padding, dilation and groups.

    Raises:
        NoStep: padding by anything but zeros, or given by name.
    """
    if layer.padding_mode != "zeros":
        raise NoStep(f"pads by {layer.padding_mode!r}")
    if isinstance(layer.padding, str):
        raise NoStep(f"has padding {layer.padding!r}; give its size")
    return pair(layer.stride), pair(layer.padding), pair(layer.dilation), int(layer.groups)  # type: ignore[arg-type]


def example_kernels(
    grad: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return the gradient of each example's kernel, ``[B, out, in, kh, kw]``.

    Products with patches where channels are few, else a convolution with groups of channels for
    each example; `kernel` gives the shape.
    """
    num, shape = len(grad), kernel.shape
    if groups == 1 and x.shape[1] < _BLOCK:
        rows = patches(x, shape[2:], stride, padding, dilation)
        products = torch.bmm(rows, grad.permute(0, 2, 3, 1).flatten(1, 2))
        return products.transpose(1, 2).reshape(num, *shape)
    x, grad = (part.contiguous().flatten(0, 1)[None] for part in (x, grad))
    kernels = kernel.new_empty(()).expand(num * len(kernel), *shape[1:])
    options = (stride, padding, dilation, False, [0, 0], num * groups)
    each: Tensor = aten.convolution_backward(grad, x, kernels, [0], *options, [False, True, False])[
        1
    ]
    return each.view(num, *shape)


def patches(
    x: Tensor, kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Return what each output sees, ``[B, in · kh · kw, h · w]``; faster than torch's unfold."""
    (top, left), (tall, wide) = padding, dilation
    windows = nn.functional.pad(x.contiguous(), (left, left, top, top))
    windows = windows.unfold(2, tall * (kernel[0] - 1) + 1, stride[0])
    windows = windows.unfold(3, wide * (kernel[1] - 1) + 1, stride[1])
    ordered = windows[..., ::tall, ::wide].permute(0, 1, 4, 5, 2, 3)
    return ordered.reshape(len(x), x.shape[1] * kernel[0] * kernel[1], -1)


def channels_last(x: Tensor) -> Tensor:
    """Return the tensor with its channels innermost in memory."""
    if x.shape[1] == 1:
        # One channel has both formats at once: say which, or oneDNN answers in the other.
        height, width = x.shape[2:]
        return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))
    return x.contiguous(memory_format=torch.channels_last)
