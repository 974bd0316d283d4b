"""A task's losses and their gradient at the model's outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from fedge.task import Task
from fedge.training.batches import check_losses

aten = torch.ops.aten

_PLAIN = {
    "weight": None,
    "size_average": None,
    "ignore_index": -100,
    "reduce": None,
    "reduction": "none",
    "label_smoothing": 0.0,
}
_NO_REDUCTION = 0


class LossGradient:
    """Losses and gradients of one task: by autograd, or written out for plain cross-entropy.

    The first call watches what the task does.

    Attributes:
        is_plain: whether the loss is plain cross-entropy of class numbers; None before the
            first call.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self.is_plain: bool | None = None

    def __call__(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses, ``[K, B]``, and the outputs' gradient of their weighted sum.

        K is 1 unless the loss is plain.

        Args:
            outputs: ``[K, B, ...]``.
            weights: ``[K, B]``.

        Raises:
            TaskError: the task does not give one loss an example.
        """
        if self.is_plain:
            flat = cross_entropy(outputs.flatten(0, 1), targets.flatten(), weights.flatten())
            return flat[0].view(weights.shape), flat[1].view(outputs.shape)
        with torch.enable_grad():
            values = outputs[0].detach().requires_grad_()
            losses = check_losses(self._watch(values, targets[0]), len(values))
            (grad,) = torch.autograd.grad(losses, values, weights[0].to(losses.dtype))
        return losses.detach()[None], grad[None]

    def _watch(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.is_plain is not None:
            return self._task.loss(outputs, targets)
        with _Recorder() as recorder:
            losses = self._task.loss(outputs, targets)
        self.is_plain = recorder.saw_only_cross_entropy(outputs, targets, losses)
        return losses


def cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``cross_entropy(..., reduction="none")`` and the gradient of its weighted sum.

    Autograd's machinery is a tenth of a small model's step; these are the operations that it runs.
    """
    logs = torch.log_softmax(outputs, 1)
    options = (None, _NO_REDUCTION, _PLAIN["ignore_index"])
    losses, total = aten.nll_loss_forward(logs, targets, *options)
    grad = aten.nll_loss_backward(weights, logs, targets, *options, total)
    return losses, aten._log_softmax_backward_data(grad, logs, 1, outputs.dtype)


class _Recorder(TorchFunctionMode):
    """Notes every torch function that is called."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_function__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def saw_only_cross_entropy(self, outputs: Tensor, targets: Tensor, losses: Any) -> bool:
        """Tell whether the losses are one call's answer to exactly these, with no options."""
        if len(self._calls) != 1 or outputs.dim() != 2 or targets.dtype != torch.int64:
            return False
        function, args, options, result = self._calls[0]
        if function is not F.cross_entropy or result is not losses or len(args) != 2:
            return False
        same = args[0] is outputs and args[1] is targets
        return same and all(_PLAIN.get(name, options) == value for name, value in options.items())
