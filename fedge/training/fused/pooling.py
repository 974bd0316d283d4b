"""Pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedge.training.fused.layers import STEPS, NoStep, Plain, Slot

aten = torch.ops.aten

_VECTOR_WIDTH = 16
"""From so many channels on, torch's pooling of channels-last tensors is the faster one."""


def pair(value: Any) -> list[int]:
    """Return a layer's size option as two integers."""
    return [int(size) for size in value] if isinstance(value, tuple) else [int(value)] * 2


@STEPS.register("MaxPool2d")
class MaxPoolStep(Plain):
    """The largest value of each window; of equals the first, as torch does."""

    def __init__(self, layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()
        if layer.return_indices:
            raise NoStep("returns indices")
        stride = layer.kernel_size if layer.stride is None else layer.stride
        sizes = (layer.kernel_size, stride, layer.padding, layer.dilation)
        self._options = (*map(pair, sizes), bool(layer.ceil_mode))
        self._x = self._indices = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, channels last where that is worth a copy."""
        if x.dim() == 4 and x.shape[1] >= _VECTOR_WIDTH:
            x = x.contiguous(memory_format=torch.channels_last)
        self._x = x
        y, self._indices = aten.max_pool2d_with_indices(x, *self._options)
        return y  # type: ignore[no-any-return]

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Give each window's gradient to its largest value."""
        spread: Tensor = aten.max_pool2d_with_indices_backward(
            grad, self._x, *self._options, self._indices
        )
        return spread


@STEPS.register("AvgPool2d")
class AvgPoolStep(Plain):
    """The mean of each window."""

    def __init__(self, layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()
        sizes = (layer.kernel_size, layer.stride, layer.padding)
        self._options = (
            *map(pair, sizes),
            bool(layer.ceil_mode),
            bool(layer.count_include_pad),
            layer.divisor_override,
        )
        self._x = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        self._x = x
        return aten.avg_pool2d(x, *self._options)  # type: ignore[no-any-return]

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Spread each gradient over its window."""
        return aten.avg_pool2d_backward(grad, self._x, *self._options)  # type: ignore[no-any-return]


@STEPS.register("AdaptiveAvgPool2d")
class AdaptiveAvgPoolStep(Plain):
    """The mean of windows that cover the image."""

    def __init__(self, layer: nn.Module, _slots: dict[str, Slot]) -> None:
        super().__init__()
        size = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,)
        if any(part is None for part in size):
            raise NoStep("has an output size of None")
        self._size = pair(layer.output_size)
        self._x = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        self._x = x
        return aten._adaptive_avg_pool2d(x, self._size)  # type: ignore[no-any-return]

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Spread each gradient over its window."""
        return aten._adaptive_avg_pool2d_backward(grad, self._x)  # type: ignore[no-any-return]
