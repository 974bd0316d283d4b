"""Models of any kind, as far as ``torch.func.vmap`` can run them over stacked weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedge.errors import TaskError
from fedge.task import Task
from fedge.training.batches import check_losses
from fedge.training.stacked.gradients import Gradients, StepInputs, Weights, clip_shares

_BYTES = 4


class Vmapped:
    """Engine that runs the model itself under ``vmap``.

    Args:
        dtype: of forward and backward passes; outputs are float32.
        gradient_bytes: bound of per-example gradients held at once.
    """

    def __init__(
        self, model: nn.Module, task: Task, dtype: torch.dtype, gradient_bytes: int
    ) -> None:
        self._model = model
        self._task = task
        self._dtype = dtype
        self._gradient_bytes = gradient_bytes
        frozen = {
            name: value for name, value in model.named_parameters() if not value.requires_grad
        }
        self._buffers = dict(model.named_buffers())
        self._constants = {**frozen, **self._buffers}

    def gradients(self, weights: Weights, batch: StepInputs) -> tuple[Tensor, Gradients]:
        """Return each row's loss ``[K, W]`` and the gradients of their sums in shares."""
        num_rows = batch.shares.numel()
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        with torch.enable_grad():
            outputs = vmap(self._outputs)(self._cast(leaves), batch.inputs)
            targets = batch.targets.flatten(0, 1)
            losses = check_losses(self._task.loss(outputs.flatten(0, 1), targets), num_rows)
            total = losses @ batch.shares.flatten().to(losses.dtype)
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        gradients: Gradients = {
            name: gradient
            for name, gradient in zip(leaves, found, strict=True)
            if gradient is not None
        }
        return losses.detach().view_as(batch.shares), gradients

    def clipped(
        self, weights: Weights, batch: StepInputs, clip_norms: Tensor
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Return losses and gradient norms ``[K, W]``, and sums of clipped gradients."""
        self._check_all_take_part(weights, batch)
        width = batch.shares.shape[1]
        row_bytes = _BYTES * sum(value.numel() for value in weights.values())
        part = max(1, min(width, self._gradient_bytes // row_bytes))
        all_losses, all_norms = [], []
        sums = {name: torch.zeros_like(value) for name, value in weights.items()}
        for start in range(0, width, part):
            piece = StepInputs(*(tensor[:, start : start + part] for tensor in batch))
            losses, norms, gradients = self._clipped_part(weights, piece, clip_norms)
            for name, gradient in gradients.items():
                sums[name] += gradient
            all_losses.append(losses)
            all_norms.append(norms)
        return torch.cat(all_losses, 1), torch.cat(all_norms, 1), dict(sums)

    def _clipped_part(
        self, weights: Weights, batch: StepInputs, clip_norms: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows = vmap(grad_and_value(self._one_loss), in_dims=(None, 0, 0))
        found, losses = vmap(rows)(dict(weights), batch.inputs, batch.targets)
        squares = [value.flatten(2).square().sum(2) for value in found.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        shares = clip_shares(norms, clip_norms, batch.shares)
        sums = {}
        for name, value in found.items():
            own = torch.where((shares > 0)[..., None], value.flatten(2), 0.0)
            sums[name] = torch.bmm(shares[:, None], own).view_as(weights[name])
        return losses, norms, sums

    def _one_loss(self, weights: Weights, example: Tensor, target: Tensor) -> Tensor:
        outputs = self._outputs(self._cast(weights), example[None])
        loss: Tensor = check_losses(self._task.loss(outputs, target[None]), 1)[0]
        return loss

    def _outputs(self, weights: Weights, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point() and self._dtype != torch.float32:
            inputs = inputs.to(self._dtype)
        versions = [value._version for value in self._buffers.values()]
        constants = self._cast(self._constants)
        outputs: Tensor = functional_call(self._model, {**weights, **constants}, (inputs,))
        if versions != [value._version for value in self._buffers.values()]:
            raise TaskError("the model changes its buffers, which every client has for itself")
        return outputs.float()

    def _cast(self, tensors: Weights) -> dict[str, Tensor]:
        return {
            name: value.to(self._dtype) if value.is_floating_point() else value
            for name, value in tensors.items()
        }

    def _check_all_take_part(self, weights: Weights, batch: StepInputs) -> None:
        """Refuse what a device refuses: weights that take no part in the output, or two."""
        one = {name: value[0].detach().requires_grad_() for name, value in weights.items()}
        with torch.enable_grad(), _each_layer_once(self._model):
            loss = self._one_loss(one, batch.inputs[0, 0], batch.targets[0, 0])
        found = torch.autograd.grad(loss, list(one.values()), allow_unused=True)
        if any(gradient is None for gradient in found):
            raise TaskError("a trainable parameter takes no part in the model's output")


@contextmanager
def _each_layer_once(model: nn.Module) -> Iterator[None]:
    """Refuse a pass in which a layer with weights is called twice: Opacus cannot clip it."""
    called: set[int] = set()

    def count(module: nn.Module, inputs: object) -> None:  # noqa: ARG001
        if id(module) in called:
            raise TaskError("a layer with weights is used twice")
        called.add(id(module))

    owners = [
        module
        for module in model.modules()
        if any(value.requires_grad for value in module.parameters(recurse=False))
    ]
    hooks = [module.register_forward_pre_hook(count) for module in owners]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
