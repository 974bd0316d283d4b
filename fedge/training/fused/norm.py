"""Normalisation within an example."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fedge.training.fused.layers import STEPS, Plain, Slot, example_squares, weighted_sum

aten = torch.ops.aten


class NormStep(Plain):
    """Values less their mean over their deviation, then scaled and shifted by parameters."""

    def __init__(self, slots: dict[str, Slot]) -> None:
        super().__init__()
        self.slots = slots
        self._scale, self._shift = slots.get("weight"), slots.get("bias")
        self._x = self._plain = torch.empty(0)
        self._moments: tuple[Tensor, Tensor] = (self._x, self._x)
        self._each: dict[str, Tensor] = {}

    @abstractmethod
    def normalise(self, x: Tensor) -> Any:
        """Return ``[N, ...]`` normalised, means and inverse deviations."""

    @abstractmethod
    def unnormalise(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return the input's gradient, ``[N, ...]``."""

    @abstractmethod
    def spread(self, parameters: Tensor, num_dims: int) -> Tensor:
        """Return ``[K, ...]`` in a shape that is multiplied with ``[K, B, ...]``."""

    @abstractmethod
    def by_example(self, values: Tensor) -> Tensor:
        """Sum what one parameter of one example is multiplied with, ``[K, B, parameters]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        self._x = x.contiguous()
        plain, *moments = self.normalise(self._x.flatten(0, 1))
        self._moments, self._plain = (moments[0], moments[1]), plain.view(x.shape)
        y = self._plain
        if self._scale is not None:
            y = y * self.spread(self._scale.value, x.dim())
        if self._shift is not None:
            y = y + self.spread(self._shift.value, x.dim())
        return y

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Multiply, and go back through means and deviations."""
        self._set_each(grad)
        for name, part in self._each.items():
            gradient = self.slots[name].gradient
            assert gradient is not None
            gradient.copy_(part.sum(1).view(gradient.shape))
        return self.input_gradient(grad) if needs_input else None

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Go back through scale, means and deviations."""
        if self._scale is not None:
            grad = grad * self.spread(self._scale.value, grad.dim())
        passed = self.unnormalise(grad.contiguous().flatten(0, 1), self._x.flatten(0, 1))
        return passed.view(self._x.shape)

    def _set_each(self, grad: Tensor) -> None:
        """Make each example's gradients, of which there are few."""
        self._each = {}
        if self._scale is not None and self._scale.gradient is not None:
            self._each["weight"] = self.by_example(grad * self._plain)
        if self._shift is not None and self._shift.gradient is not None:
            self._each["bias"] = self.by_example(grad)

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Make each example's gradients."""
        self._set_each(grad)
        total = grad.new_zeros(grad.shape[:2])
        for part in self._each.values():
            total += example_squares(part)
        return total, self.input_gradient(grad) if needs_input else None

    def weighted(self, coefficients: Tensor) -> None:
        """Weigh each example's gradients."""
        for name, part in self._each.items():
            weighted_sum(part, coefficients, self.slots[name].gradient)


@STEPS.register("GroupNorm")
class GroupNormStep(NormStep):
    """Over groups of channels."""

    def __init__(self, layer: nn.Module, slots: dict[str, Slot]) -> None:
        super().__init__(slots)
        self._groups, self._eps = int(layer.num_groups), float(layer.eps)  # type: ignore[arg-type]

    def _sizes(self, x: Tensor) -> tuple[int, int, int, int]:
        return len(x), x.shape[1], math.prod(x.shape[2:]), self._groups

    def normalise(self, x: Tensor) -> Any:
        """Return outputs, means and inverse deviations."""
        return aten.native_group_norm(x, None, None, *self._sizes(x), self._eps)

    def unnormalise(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return the input's gradient."""
        mask = [True, False, False]
        passed: Tensor = aten.native_group_norm_backward(
            grad, x, *self._moments, None, *self._sizes(x), mask
        )[0]
        return passed

    def spread(self, parameters: Tensor, num_dims: int) -> Tensor:
        """Return ``[K, C]`` as ``[K, 1, C, 1, ...]``."""
        return parameters.view(len(parameters), 1, -1, *[1] * (num_dims - 3))

    def by_example(self, values: Tensor) -> Tensor:
        """Sum over positions."""
        return values.flatten(3).sum(3) if values.dim() > 3 else values


@STEPS.register("LayerNorm")
class LayerNormStep(NormStep):
    """Over the last dimensions."""

    def __init__(self, layer: nn.Module, slots: dict[str, Slot]) -> None:
        super().__init__(slots)
        self._shape = [int(size) for size in layer.normalized_shape]  # type: ignore[union-attr]
        self._eps = float(layer.eps)  # type: ignore[arg-type]

    def normalise(self, x: Tensor) -> Any:
        """Return outputs, means and inverse deviations."""
        return aten.native_layer_norm(x, self._shape, None, None, self._eps)

    def unnormalise(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return the input's gradient."""
        mask = [True, False, False]
        passed: Tensor = aten.native_layer_norm_backward(
            grad, x, self._shape, *self._moments, None, None, mask
        )[0]
        return passed

    def spread(self, parameters: Tensor, num_dims: int) -> Tensor:
        """Return ``[K, ...]`` with ones between the first and the last dimensions."""
        ones = [1] * (num_dims - 1 - len(self._shape))
        return parameters.view(len(parameters), *ones, *self._shape)

    def by_example(self, values: Tensor) -> Tensor:
        """Sum over what stands before the normalised dimensions."""
        return values.reshape(*values.shape[:2], -1, math.prod(self._shape)).sum(2)
