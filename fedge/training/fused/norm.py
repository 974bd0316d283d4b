"""Normalisation within an example."""

from __future__ import annotations

import math
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
        self._x = torch.empty(0)
        self._moments: tuple[Tensor, Tensor] = (self._x, self._x)
        self._each: dict[str, Tensor] = {}

    def normalise(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Any:
        """Return outputs, means and inverse deviations."""
        raise NotImplementedError

    def gradients(self, grad: Tensor, mask: list[bool]) -> Any:
        """Return the gradients of input, scale and shift that the mask asks for."""
        raise NotImplementedError

    def by_example(self, values: Tensor) -> Tensor:
        """Sum what one parameter of one example is multiplied with, ``[B, parameters]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        self._x = x.contiguous()
        scale, shift = (None if slot is None else slot.value for slot in (self._scale, self._shift))
        y, *moments = self.normalise(self._x, scale, shift)
        self._moments = (moments[0], moments[1])
        return y  # type: ignore[no-any-return]

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Return and set what is asked for."""
        mask = [needs_input, self._trains(self._scale), self._trains(self._shift)]
        passed, *parts = self.gradients(grad.contiguous(), mask)
        for slot, part in zip((self._scale, self._shift), parts, strict=True):
            if slot is not None and slot.gradient is not None:
                slot.gradient.copy_(part)
        return passed if needs_input else None

    @staticmethod
    def _trains(slot: Slot | None) -> bool:
        return slot is not None and slot.gradient is not None

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Make each example's gradients, of which there are few."""
        grad = grad.contiguous()
        total = grad.new_zeros(len(grad))
        if self._trains(self._scale):
            plain = self.normalise(self._x, None, None)[0]
            self._each["weight"] = self.by_example(grad * plain)
        if self._trains(self._shift):
            self._each["bias"] = self.by_example(grad)
        for part in self._each.values():
            total += example_squares(part)
        return total, self.gradients(grad, [True, False, False])[0] if needs_input else None

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

    def _sizes(self) -> tuple[int, int, int, int]:
        batch, channels = self._x.shape[:2]
        return batch, channels, math.prod(self._x.shape[2:]), self._groups

    def normalise(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Any:
        """Return outputs, means and inverse deviations."""
        return aten.native_group_norm(x, scale, shift, *self._sizes(), self._eps)

    def gradients(self, grad: Tensor, mask: list[bool]) -> Any:
        """Return the gradients of input, scale and shift that the mask asks for."""
        scale = None if self._scale is None else self._scale.value
        return aten.native_group_norm_backward(
            grad, self._x, *self._moments, scale, *self._sizes(), mask
        )

    def by_example(self, values: Tensor) -> Tensor:
        """Sum over positions."""
        return values.flatten(2).sum(2) if values.dim() > 2 else values


@STEPS.register("LayerNorm")
class LayerNormStep(NormStep):
    """Over the last dimensions."""

    def __init__(self, layer: nn.Module, slots: dict[str, Slot]) -> None:
        super().__init__(slots)
        self._shape = [int(size) for size in layer.normalized_shape]  # type: ignore[union-attr]
        self._eps = float(layer.eps)  # type: ignore[arg-type]

    def normalise(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Any:
        """Return outputs, means and inverse deviations."""
        return aten.native_layer_norm(x, self._shape, scale, shift, self._eps)

    def gradients(self, grad: Tensor, mask: list[bool]) -> Any:
        """Return the gradients of input, scale and shift that the mask asks for."""
        values = (None if slot is None else slot.value for slot in (self._scale, self._shift))
        return aten.native_layer_norm_backward(
            grad, self._x, self._shape, *self._moments, *values, mask
        )

    def by_example(self, values: Tensor) -> Tensor:
        """Sum over what stands before the normalised dimensions."""
        return values.reshape(len(values), -1, math.prod(self._shape)).sum(1)
