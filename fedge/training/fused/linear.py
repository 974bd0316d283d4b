"""Linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedge.training.fused.layers import (
    STEPS,
    Plain,
    Slot,
    example_squares,
    weighted_sum,
)


@STEPS.register("Linear")
class LinearStep(Plain):
    """``x Wᵀ + b`` over the last dimension."""

    def __init__(self, _layer: nn.Module, slots: dict[str, Slot]) -> None:
        super().__init__()
        self.slots = slots
        self._weight = slots["weight"]
        self._bias = slots.get("bias")
        self._x = self._grad = torch.empty(0)
        self._each: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        self._x = x
        rows, bias = x.reshape(-1, x.shape[-1]), self._bias
        weight = self._weight.value.t()
        y = torch.mm(rows, weight) if bias is None else torch.addmm(bias.value, rows, weight)
        return y.view(*x.shape[:-1], y.shape[1])

    def backward(self, grad: Tensor, needs_input: bool) -> Tensor | None:
        """Multiply by the inputs, and by the weights."""
        rows = grad.reshape(-1, grad.shape[-1])
        if self._weight.gradient is not None:
            x = self._x.reshape(-1, self._x.shape[-1])
            torch.mm(rows.t(), x, out=self._weight.gradient)
        if self._bias is not None and self._bias.gradient is not None:
            torch.sum(rows, 0, out=self._bias.gradient)
        return self.input_gradient(grad) if needs_input else None

    def input_gradient(self, grad: Tensor) -> Tensor:
        """Multiply by the weights."""
        rows = grad.reshape(-1, grad.shape[-1])
        return torch.mm(rows, self._weight.value).view(self._x.shape)

    def squares(self, grad: Tensor, needs_input: bool) -> tuple[Tensor | None, Tensor | None]:
        """Multiply norms where an example has one row; else make each example's gradient."""
        self._grad, self._each = grad, None
        total = grad.new_zeros(len(grad))
        if self._weight.gradient is not None:
            if grad.dim() == 2:
                total += example_squares(grad) * example_squares(self._x)
            else:
                g, x = grad.flatten(1, -2), self._x.flatten(1, -2)
                self._each = torch.bmm(g.transpose(1, 2), x)
                total += example_squares(self._each)
        if self._bias is not None and self._bias.gradient is not None:
            total += example_squares(self._bias_rows())
        return total, self.input_gradient(grad) if needs_input else None

    def _bias_rows(self) -> Tensor:
        return self._grad if self._grad.dim() == 2 else self._grad.flatten(1, -2).sum(1)

    def weighted(self, coefficients: Tensor) -> None:
        """Weigh the output gradients, or each example's weight gradient."""
        if self._each is not None:
            weighted_sum(self._each, coefficients, self._weight.gradient)
        elif self._weight.gradient is not None:
            weighed = self._grad * coefficients[:, None]
            torch.mm(weighed.t(), self._x, out=self._weight.gradient)
        if self._bias is not None:
            weighted_sum(self._bias_rows(), coefficients, self._bias.gradient)
