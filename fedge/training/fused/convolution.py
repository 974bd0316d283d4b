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
    as_images,
    example_squares,
    from_images,
    weighted_sum,
)
from fedge.training.fused.pooling import pair

aten = torch.ops.aten

_BLOCK = 16
"""Channels that fill a vector of the processor."""


@STEPS.register("Conv2d")
class ConvStep(Plain):
    """A convolution by oneDNN, with a group of channels for each client.

    Channels-last groups are as fast as convolutions one by one, faster where channels are few.
    """

    def __init__(self, layer: nn.Module, slots: dict[str, Slot]) -> None:
        super().__init__()
        self._stride, self._padding, self._dilation, self._groups = conv_options(layer)
        self.slots = slots
        self._weight, self._bias = slots["weight"], slots.get("bias")
        self._x = self._images = self._kernel = self._each = self._sums = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        self._x, self._images = x, as_images(x)
        # One copy that joins the clients' kernels and makes them channels-last.
        kernels = self._weight.value.permute(0, 1, 3, 4, 2).flatten(0, 1)
        self._kernel = kernels.permute(0, 3, 1, 2)
        bias = None if self._bias is None else self._bias.value.flatten()
        options = (self._stride, self._padding, self._dilation, x.shape[0] * self._groups)
        return from_images(torch.conv2d(self._images, self._kernel, bias, *options), x.shape[0])

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Correlate with the inputs, and convolve with the turned kernel."""
        images = as_images(grad)
        if self._weight.gradient is not None:
            kernels = self._run(images, self._images, self._kernel, [False, True, False])[1]
            shape = self._weight.gradient.shape
            self._weight.gradient.copy_(kernels.view(shape))
        if self._bias is not None and self._bias.gradient is not None:
            self._bias.gradient.copy_(images.sum((0, 2, 3)).view(len(grad), -1))
        return self.input_gradient(images) if needs_input else None

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Convolve images with the turned kernel."""
        x, kernel, num = self._images, self._kernel, self._x.shape[0]
        if num == 1 and x.shape[1] % _BLOCK:
            # oneDNN is slow here in channels-last. Of x only shape and format are read.
            grad, kernel, x = grad.contiguous(), kernel.contiguous(), torch.empty(x.shape)
        return from_images(self._run(grad, x, kernel, [True, False, False])[0], num)

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Make each example's gradient."""
        total = grad.new_zeros(grad.shape[:2])
        if self._weight.gradient is not None:
            each = self._example_kernels(grad.flatten(0, 1))
            self._each = each.view(*grad.shape[:2], *each.shape[1:])
            total += example_squares(self._each)
        if self._bias is not None and self._bias.gradient is not None:
            self._sums = grad.sum((3, 4))
            total += example_squares(self._sums)
        return total, self.input_gradient(as_images(grad)) if needs_input else None

    def weighted(self, coefficients: Tensor) -> None:
        """Weigh each example's gradient."""
        if self._weight.gradient is not None:
            weighted_sum(self._each, coefficients, self._weight.gradient)
        if self._bias is not None and self._bias.gradient is not None:
            weighted_sum(self._sums, coefficients, self._bias.gradient)

    def _example_kernels(self, grad: Tensor) -> Tensor:
        """Return each example's kernel gradient, ``[N, out, in, kh, kw]``, from ``[N, out, ...]``.

        Products with patches where channels are few, else a convolution with groups of channels
        for each example.
        """
        x, shape = self._x.flatten(0, 1), self._weight.value.shape[1:]
        num, options = len(grad), (self._stride, self._padding, self._dilation)
        if self._groups == 1 and x.shape[1] < _BLOCK:
            rows = torch.bmm(
                patches(x, shape[2:], *options), grad.permute(0, 2, 3, 1).flatten(1, 2)
            )
            return rows.transpose(1, 2).reshape(num, *shape)
        x, grad = (part.contiguous().flatten(0, 1)[None] for part in (x, grad))
        # Of the kernels only the shape is read.
        kernels = x.new_empty(()).expand(num * shape[0], *shape[1:])
        rest = (False, [0, 0], num * self._groups, [False, True, False])
        each = aten.convolution_backward.default(grad, x, kernels, [0], *options, *rest)[1]
        return each.view(num, *shape)  # type: ignore[no-any-return]

    def _run(self, grad: Tensor, x: Tensor, kernel: Tensor, mask: list[bool]) -> list[Tensor]:
        """Return the gradients of input, kernel and bias that the mask asks for."""
        groups = self._x.shape[0] * self._groups
        options = (self._stride, self._padding, self._dilation, False, [0, 0], groups)
        return aten.convolution_backward.default(grad, x, kernel, [0], *options, mask)  # type: ignore[no-any-return]


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


def patches(
    x: Tensor, kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Return what each output sees, ``[N, in · kh · kw, h · w]``; faster than torch's unfold."""
    (top, left), (tall, wide) = padding, dilation
    windows = nn.functional.pad(x.contiguous(), (left, left, top, top))
    windows = windows.unfold(2, tall * (kernel[0] - 1) + 1, stride[0])
    windows = windows.unfold(3, wide * (kernel[1] - 1) + 1, stride[1])
    ordered = windows[..., ::tall, ::wide].permute(0, 1, 4, 5, 2, 3)
    return ordered.reshape(len(x), x.shape[1] * kernel[0] * kernel[1], -1)
