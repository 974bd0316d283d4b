"""Pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedge.training.fused.layers import STEPS, NoStep, Plain, Slot, as_images, from_images

aten = torch.ops.aten


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
        self._num_clients = 0

    def forward(self, x: Tensor) -> Tensor:
        """Pool all clients' channels at once; channels last, torch works with whole vectors."""
        self._x, self._num_clients = as_images(x), x.shape[0]
        y, self._indices = aten.max_pool2d_with_indices.default(self._x, *self._options)
        return from_images(y, x.shape[0])

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Give each window's gradient to its largest value."""
        spread = aten.max_pool2d_with_indices_backward.default(
            as_images(grad), self._x, *self._options, self._indices
        )
        return from_images(spread, self._num_clients)


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
        self._x = as_images(x)
        return from_images(aten.avg_pool2d(self._x, *self._options), len(x))

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Spread each gradient over its window."""
        spread = aten.avg_pool2d_backward(as_images(grad), self._x, *self._options)
        return from_images(spread, len(grad))


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
        self._x = as_images(x)
        return from_images(aten._adaptive_avg_pool2d(self._x, self._size), len(x))

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Spread each gradient over its window."""
        spread = aten._adaptive_avg_pool2d_backward(as_images(grad), self._x)
        return from_images(spread, len(grad))
