"""Linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedge.training.fused.layers import STEPS, Plain, Slot, example_squares, weighted_sum


@STEPS.register("Linear")
class LinearStep(Plain):
    """``x Wᵀ + b`` over the last dimension."""

    def __init__(self, _layer: nn.Module, slots: dict[str, Slot]) -> None:
        super().__init__()
        self.slots = slots
        self._weight, self._bias = slots["weight"], slots.get("bias")
        self._x = self._grad = torch.empty(0)
        self._each: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        self._x = x
        rows, weight = _rows(x), self._weight.value.transpose(1, 2)
        if self._bias is None:
            y = torch.bmm(rows, weight)
        else:
            y = torch.baddbmm(self._bias.value[:, None], rows, weight)
        return y.view(*x.shape[:-1], y.shape[2])

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Multiply by the inputs, and by the weights."""
        rows = _rows(grad)
        if self._weight.gradient is not None:
            torch.bmm(rows.transpose(1, 2), _rows(self._x), out=self._weight.gradient)
        if self._bias is not None and self._bias.gradient is not None:
            torch.sum(rows, 1, out=self._bias.gradient)
        return self.input_gradient(grad) if needs_input else None

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Multiply by the weights."""
        return torch.bmm(_rows(grad), self._weight.value).view(self._x.shape)

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Multiply norms where an example has one row; else make each example's gradient."""
        self._grad, self._each = grad, None
        total = grad.new_zeros(grad.shape[:2])
        if self._weight.gradient is not None:
            if grad.dim() == 3:
                total += example_squares(grad) * example_squares(self._x)
            else:
                each = torch.bmm(_by_example(grad).transpose(1, 2), _by_example(self._x))
                self._each = each.view(*grad.shape[:2], *each.shape[1:])
                total += example_squares(self._each)
        if self._bias is not None and self._bias.gradient is not None:
            total += example_squares(self._bias_rows())
        return total, self.input_gradient(grad) if needs_input else None

    def _bias_rows(self) -> Tensor:
        return self._grad if self._grad.dim() == 3 else self._grad.flatten(2, -2).sum(2)

    def weighted(self, coefficients: Tensor) -> None:
        """Weigh the output gradients, or each example's weight gradient."""
        if self._each is not None:
            weighted_sum(self._each, coefficients, self._weight.gradient)
        elif self._weight.gradient is not None:
            weighed = self._grad * coefficients[..., None]
            torch.bmm(weighed.transpose(1, 2), self._x, out=self._weight.gradient)
        if self._bias is not None:
            weighted_sum(self._bias_rows(), coefficients, self._bias.gradient)


def _rows(x: Tensor) -> Tensor:
    """Return ``[K, B, ..., F]`` as ``[K, rows, F]``."""
    return x if x.dim() == 3 else x.flatten(1, -2)


def _by_example(x: Tensor) -> Tensor:
    """Return ``[K, B, ..., F]`` as ``[K · B, rows, F]``."""
    return x.flatten(2, -2).flatten(0, 1)
