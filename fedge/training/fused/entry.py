"""A first convolution with few channels and its 2 × 2 max pooling.

The four outputs that one window of the pooling looks at are made side by side, as four groups of
channels of a convolution over the inputs' own 2 × 2 windows (space to depth). Six channels become
24, which fill the processor's vectors, and pooling compares whole groups. The first layer's
inputs never change, so they are brought into this form once a client.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedge.training.fused.convolution import channels_last, conv_options, example_kernels
from fedge.training.fused.layers import Plain, Slot, example_squares, weighted_sum
from fedge.training.fused.pooling import pair

aten = torch.ops.aten

_VECTOR_WIDTH = 16
"""With as many output channels, the plain convolution fills the vectors by itself."""

_PLAIN = ([1, 1], [0, 0], [1, 1])
"""Stride, padding and dilation of the larger convolution."""


class EntryStep(Plain):
    """Convolution and max pooling of the first layer.

    Args:
        shape: of one input, ``[C, H, W]``.
    """

    def __init__(self, layer: nn.Module, slots: dict[str, Slot], shape: torch.Size) -> None:
        super().__init__()
        _, self._padding, _, _ = conv_options(layer)
        self.slots = slots
        self._weight, self._bias = slots["weight"], slots.get("bias")
        self._taps = [(taps + 2) // 2 for taps in self._weight.value.shape[2:]]
        self._grid = [size // 2 for size in _output_sizes(layer, shape)]
        self._sources = _spread(self._weight.value.shape)
        # Where the larger kernel's values come from; the last place holds a zero.
        num = self._weight.value.numel()
        self._origins = torch.full((self._num_taps(),), num)
        self._origins[self._sources] = torch.arange(num).expand(4, num)
        self._zero = torch.zeros(1)
        self._x = self._kernel = self._image = self._indices = self._zero
        self._each = self._sums = self._zero

    @staticmethod
    def fits(layer: nn.Module, pool: nn.Module, shape: torch.Size) -> bool:
        """Tell whether this step computes the two layers, and well."""
        if not isinstance(layer, nn.Conv2d) or not isinstance(pool, nn.MaxPool2d):
            return False
        if len(shape) != 3 or layer.out_channels >= _VECTOR_WIDTH:
            return False
        stride, _, dilation, groups = conv_options(layer)
        pools = [pool.kernel_size, pool.stride, pool.padding, pool.dilation]
        return (
            (stride, dilation, groups) == ([1, 1], [1, 1], 1)
            and list(map(pair, pools)) == [[2, 2], [2, 2], [0, 0], [1, 1]]
            and all(size > 0 and size % 2 == 0 for size in _output_sizes(layer, shape))
        )

    def _num_taps(self) -> int:
        out, channels = self._weight.value.shape[:2]
        return 4 * out * channels * 4 * self._taps[0] * self._taps[1]

    def _kernel_shape(self) -> tuple[int, ...]:
        out, channels = self._weight.value.shape[:2]
        return (4 * out, 4 * channels, *self._taps)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Make each 2 × 2 window a pixel of four times the channels, ``[N, 4 C, h, w]``."""
        height, width = (grid + taps - 1 for grid, taps in zip(self._grid, self._taps, strict=True))
        top, left = self._padding
        bottom = 2 * height - inputs.shape[2] - top
        right = 2 * width - inputs.shape[3] - left
        padded = nn.functional.pad(inputs, (left, right, top, bottom))
        windows = padded.view(*inputs.shape[:2], height, 2, width, 2).permute(0, 1, 3, 5, 2, 4)
        return windows.reshape(len(inputs), -1, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and pool."""
        self._x = x
        values = torch.cat((self._weight.value.view(-1), self._zero))
        self._kernel = values.index_select(0, self._origins).view(self._kernel_shape())
        bias = None if self._bias is None else self._bias.value.repeat(4)
        products = torch.conv2d(x, self._kernel, bias).contiguous()
        # The groups stand for the height of a channels-last image: pooling runs over vectors.
        self._image = products.view(len(x), 4, 1, -1).permute(0, 3, 1, 2)
        y, self._indices = aten.max_pool2d_with_indices(self._image, [4, 1], [4, 1])
        return y.view(len(x), -1, *self._grid)  # type: ignore[no-any-return]

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Correlate with the inputs."""
        assert not needs_input, "this is the first layer"
        spread = self._spread_gradient(grad)
        if self._weight.gradient is not None:
            kernel = aten.convolution_backward(
                channels_last(spread),
                channels_last(self._x),
                self._kernel,
                [0],
                *_PLAIN,
                False,
                [0, 0],
                1,
                [False, True, False],
            )[1]
            self._weight.gradient.copy_(self._gathered(kernel[None]).view_as(self._weight.value))
        if self._bias is not None and self._bias.gradient is not None:
            torch.sum(spread.sum((0, 2, 3)).view(4, -1), 0, out=self._bias.gradient)
        return None

    def _spread_gradient(self, grad: Tensor) -> Tensor:
        """Give each window's gradient to the group that was the largest there."""
        pooled = grad.contiguous().view(len(grad), -1, 1, 1)
        spread: Tensor = aten.max_pool2d_with_indices_backward(
            pooled, self._image, [4, 1], [4, 1], [0, 0], [1, 1], False, self._indices
        )
        return spread.permute(0, 2, 3, 1).reshape(len(grad), -1, *self._grid)

    def _gathered(self, kernels: Tensor) -> Tensor:
        """Return the parameters' gradients from those of larger kernels, ``[B, parameters]``."""
        taps = kernels.reshape(len(kernels), -1).index_select(1, self._sources.view(-1))
        return taps.view(len(kernels), 4, -1).sum(1)

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Make each example's gradient."""
        assert not needs_input, "this is the first layer"
        spread = self._spread_gradient(grad)
        total = grad.new_zeros(len(grad))
        if self._weight.gradient is not None:
            kernels = example_kernels(spread, self._x, self._kernel, *_PLAIN, 1)
            self._each = self._gathered(kernels)
            total += example_squares(self._each)
        if self._bias is not None and self._bias.gradient is not None:
            self._sums = spread.sum((2, 3)).view(len(grad), 4, -1).sum(1)
            total += example_squares(self._sums)
        return total, None

    def weighted(self, coefficients: Tensor) -> None:
        """Weigh each example's gradient."""
        if self._weight.gradient is not None:
            weighted_sum(self._each, coefficients, self._weight.gradient)
        if self._bias is not None and self._bias.gradient is not None:
            weighted_sum(self._sums, coefficients, self._bias.gradient)


def _output_sizes(layer: nn.Module, shape: torch.Size) -> list[int]:
    """Return height and width of the convolution's outputs, at a stride of 1."""
    _, padding, _, _ = conv_options(layer)
    kernel = pair(layer.kernel_size)
    return [
        size + 2 * pad - taps + 1
        for size, pad, taps in zip(shape[1:], padding, kernel, strict=True)
    ]


def _spread(shape: torch.Size) -> Tensor:
    """Return where each parameter stands in the four groups of the larger kernel, ``[4, P]``."""
    out, channels, height, width = shape
    tall, wide = (height + 2) // 2, (width + 2) // 2
    places = torch.arange(4 * out * channels * 4 * tall * wide)
    # From groups, channels and places in a window back to rows and columns of pixels.
    grid = places.view(4, out, channels, 2, 2, tall, wide).permute(0, 1, 2, 5, 3, 6, 4)
    grid = grid.reshape(4, out, channels, 2 * tall, 2 * wide)
    groups = [
        grid[2 * down + right, ..., down : down + height, right : right + width]
        for down in (0, 1)
        for right in (0, 1)
    ]
    return torch.stack([group.reshape(-1) for group in groups])
