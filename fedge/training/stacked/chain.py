"""Models that are a chain of Linear layers and layers without weights, differentiated by hand.

Every product is one batched GEMM over the clients. What lies between two Linear layers has no
weights, so it is applied to the rows of all clients at once and differentiated by autograd (ReLU
by its own formula). Norms of per-example gradients come from the layers' inputs and output
gradients alone, no gradient an example is ever held. Source: Goodfellow 2015, arXiv:1510.01799.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedge.task import Task
from fedge.training.batches import check_losses
from fedge.training.fused.chain import NotAChain, chain_of
from fedge.training.fused.losses import LossGradient, cross_entropy
from fedge.training.stacked.gradients import (
    Gradients,
    Product,
    StepInputs,
    Weights,
    clip_shares,
)

# Each treats every example by itself, draws nothing and does the same in training as otherwise.
_WEIGHTLESS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.CELU,
    nn.ELU,
    nn.Flatten,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Unflatten,
)
# A vectorised loop of torch computes the last few elements by another formula than the others.
# With so many rows there are none, and a client's result does not depend on where it stands.
_ROWS = 64

Backward = Callable[[Tensor], Tensor]


class _Layer(NamedTuple):
    """A Linear layer and the layers without weights that follow it."""

    weight: str
    bias: str | None
    rest: nn.Sequential


class _Passage(NamedTuple):
    """One layer's part in a gradient: its inputs ``[K, R, in]``, output gradients ``[K, R, out]``.

    R is rows times the positions of an example (1 where an example is one vector).
    """

    layer: _Layer
    inputs: Tensor
    outward: Tensor


class Chain:
    """Engine for models that apply Linear and weightless layers one after another.

    Args:
        dtype: of the products; losses are float32.
    """

    def __init__(self, model: nn.Module, task: Task, dtype: torch.dtype) -> None:
        self._task = task
        self._loss = LossGradient(task)
        self._dtype = dtype
        self._head, self._layers = _cut(model)

    @staticmethod
    def can_take(model: nn.Module) -> bool:
        """Tell whether the model is such a chain, and trained as a whole."""
        try:
            chain = chain_of(model)
        except NotAChain:
            return False
        linear = [name for name, module in chain if type(module) is nn.Linear]
        owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
        return (
            len(linear) > 0
            and sorted(linear) == sorted(owners)  # each takes part, and once
            and all(_keeps_examples_apart(module) for _, module in chain)
            and all(parameter.requires_grad for parameter in model.parameters())
            and not any(model.buffers())
            and not any(_is_hooked(module) for module in model.modules())
        )

    def gradients(self, weights: Weights, batch: StepInputs) -> tuple[Tensor, Gradients]:
        """Return each row's loss ``[K, W]`` and the gradients of their sums in shares."""
        losses, passages = self._pass(weights, batch, batch.shares)
        gradients: Gradients = {}
        for layer, inputs, outward in passages:
            gradients |= _layer_gradients(layer, inputs, outward)
        return losses, gradients

    def clipped(
        self, weights: Weights, batch: StepInputs, clip_norms: Tensor
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Return losses and gradient norms ``[K, W]``, and sums of clipped gradients."""
        losses, way_back = self._pass(weights, batch, (batch.shares > 0).float())
        num_clients, width = batch.shares.shape
        passages = list(way_back)
        squares = [_squared_norms(passage, width) for passage in passages]
        norms = torch.stack(squares).sum(0).sqrt()
        shares = clip_shares(norms, clip_norms, batch.shares)
        gradients: Gradients = {}
        for layer, inputs, outward in passages:
            rows = outward.reshape(num_clients, width, -1) * shares[:, :, None]
            gradients |= _layer_gradients(layer, inputs, rows.view_as(outward).to(outward.dtype))
        return losses, norms, gradients

    def _pass(
        self, weights: Weights, batch: StepInputs, shares: Tensor
    ) -> tuple[Tensor, Iterator[_Passage]]:
        """Go forward; return the losses and the way back, last layer first."""
        num_clients, width = shares.shape
        rows = self._head(batch.inputs.flatten(0, 1))
        if self._dtype != torch.float32:
            rows = rows.to(self._dtype)
        steps: list[tuple[_Layer, Tensor, Tensor, Backward]] = []
        for layer in self._layers:
            weight = weights[layer.weight].to(self._dtype)
            inputs = rows.reshape(num_clients, -1, rows.shape[-1])
            outputs = _affine(inputs, weight, weights[layer.bias] if layer.bias else None)
            outputs = outputs.view(*rows.shape[:-1], outputs.shape[-1])
            if layer is self._layers[-1]:
                break
            rows, backward = _between(layer.rest, outputs)
            steps.append((layer, inputs, weight, backward))
        losses, slope = self._losses(self._layers[-1].rest, outputs, batch.targets, shares)
        steps.append((self._layers[-1], inputs, weight, lambda _: slope))
        return losses.view(num_clients, width), _way_back(steps)

    def _losses(
        self, rest: nn.Module, outputs: Tensor, targets: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return each row's loss, and the gradient of their sum in shares by the outputs."""
        rows, targets, shares = outputs.float(), targets.flatten(0, 1), shares.flatten()
        count = len(rows)
        if self._is_plain(rest, rows, targets, shares):
            filler = -count % _ROWS
            padded = torch.nn.functional.pad(shares, (0, filler)) if filler else shares
            losses, slope = cross_entropy(_fill(rows), _fill(targets), padded)
            return losses[:count], _without_idle(slope[:count], shares).to(outputs.dtype)
        leaf = _fill(rows).detach().requires_grad_()
        with torch.enable_grad():
            losses = check_losses(self._task.loss(rest(leaf), _fill(targets)), len(leaf))
        missing = len(leaf) - count
        shares = torch.nn.functional.pad(shares, (0, missing)) if missing else shares
        (slope,) = torch.autograd.grad(losses, leaf, shares.to(losses.dtype))
        slope = _without_idle(slope, shares)[:count]
        return losses.detach()[:count], slope.to(outputs.dtype)

    def _is_plain(self, rest: nn.Module, rows: Tensor, targets: Tensor, shares: Tensor) -> bool:
        """Tell whether the loss is plain cross-entropy of the rows; the first call looks."""
        if not isinstance(rest, nn.Sequential) or len(rest) or rows.dim() != 2:
            return False
        if self._loss.is_plain is None:
            self._loss(rows[None, :1], targets[None, :1], shares[None, :1])
        return bool(self._loss.is_plain)


def _without_idle(slope: Tensor, shares: Tensor) -> Tensor:
    """Return the slope with zeros for rows that count nothing: theirs may be 0 × inf."""
    counted = shares > 0
    if counted.all():
        return slope
    return torch.where(counted.view(-1, *[1] * (slope.dim() - 1)), slope, 0.0)


def _way_back(steps: list[tuple[_Layer, Tensor, Tensor, Backward]]) -> Iterator[_Passage]:
    """Yield each layer's inputs and output gradients, last layer first."""
    slope = torch.empty(0)
    for position in reversed(range(len(steps))):
        layer, inputs, weight, backward = steps[position]
        outward = backward(slope).reshape(len(inputs), inputs.shape[1], -1)
        yield _Passage(layer, inputs, outward)
        if position:
            slope = torch.bmm(outward, weight)


def _affine(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``[K, R, out]`` for inputs ``[K, R, in]`` and weights ``[K, out, in]``."""
    if bias is None:
        return torch.bmm(inputs, weight.transpose(1, 2))
    return torch.baddbmm(bias[:, None].to(inputs.dtype), inputs, weight.transpose(1, 2))


def _between(rest: nn.Sequential, outputs: Tensor) -> tuple[Tensor, Backward]:
    """Apply layers without weights; return their outputs and how gradients come back."""
    if len(rest) == 0:
        return outputs, lambda slope: slope
    if len(rest) == 1 and type(rest[0]) is nn.ReLU:
        kept = outputs.relu_()
        return kept, lambda slope: torch.ops.aten.threshold_backward(slope.view_as(kept), kept, 0)
    count = len(outputs)
    leaf = _fill(outputs).detach().requires_grad_()
    with torch.enable_grad():
        results = rest(leaf)

    def backward(slope: Tensor) -> Tensor:
        whole = slope.reshape(count, *results.shape[1:])
        missing = len(leaf) - count
        if missing:
            whole = torch.cat((whole, whole.new_zeros(missing, *whole.shape[1:])))
        (back,) = torch.autograd.grad(results, leaf, whole)
        return back[:count]

    return results.detach()[:count], backward


def _fill(rows: Tensor) -> Tensor:
    """Repeat the first row until there is a whole number of `_ROWS`."""
    missing = -len(rows) % _ROWS
    return torch.cat((rows, rows[:1].expand(missing, *rows.shape[1:]))) if missing else rows


def _layer_gradients(layer: _Layer, inputs: Tensor, outward: Tensor) -> Gradients:
    gradients: Gradients = {layer.weight: Product(outward.transpose(1, 2), inputs)}
    if layer.bias:
        gradients[layer.bias] = outward.float().sum(1)
    return gradients


def _squared_norms(passage: _Passage, width: int) -> Tensor:
    """Return each row's squared gradient norm over one layer, ``[K, W]``."""
    layer, inputs, outward = passage
    num_clients = len(inputs)
    slopes = outward.float().reshape(num_clients, width, -1, outward.shape[-1])
    values = inputs.float().reshape(num_clients, width, -1, inputs.shape[-1])
    if slopes.shape[2] == 1:
        factors = values.square().sum((2, 3)) + (1.0 if layer.bias else 0.0)
        return slopes.square().sum((2, 3)) * factors
    grams = (slopes @ slopes.transpose(2, 3)) * (values @ values.transpose(2, 3))
    # Rounding may leave a sum of squares below zero.
    total = grams.sum((2, 3)).clamp(min=0)
    return total + slopes.sum(2).square().sum(2) if layer.bias else total


def _cut(model: nn.Module) -> tuple[nn.Sequential, list[_Layer]]:
    """Return the weightless layers before the first Linear, and the Linear layers."""
    head, layers = nn.Sequential(), list[_Layer]()
    for name, module in chain_of(model):
        dot = f"{name}." if name else ""
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else f"{dot}bias"
            layers.append(_Layer(f"{dot}weight", bias, nn.Sequential()))
        else:
            (layers[-1].rest if layers else head).append(_unshared(module))
    return head, layers


def _unshared(module: nn.Module) -> nn.Module:
    """Return the module so that it changes no tensor that is still needed."""
    if not getattr(module, "inplace", False):
        return module
    twin = copy.copy(module)
    setattr(twin, "inplace", False)  # noqa: B010 - torch types attributes as tensors or modules
    return twin


def _keeps_examples_apart(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten):
        return module.start_dim > 0
    if isinstance(module, nn.Unflatten):
        return isinstance(module.dim, int) and module.dim > 0
    return type(module) in (nn.Linear, *_WEIGHTLESS)


def _is_hooked(module: nn.Module) -> bool:
    return any(
        getattr(module, hooks)
        for hooks in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )
