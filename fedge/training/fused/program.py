"""A chain of layers compiled to steps on flat buffers of several clients' weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedge.params import Layout, Vector
from fedge.training.fused import convolution, linear, norm, pointwise, pooling  # noqa: F401
from fedge.training.fused.chain import NotAChain, Rows, chain_of
from fedge.training.fused.layers import STEPS, NoStep, Slot, Step
from fedge.training.fused.pointwise import MONOTONE
from fedge.training.sgd import trained_parameters

Chain = list[tuple[str, nn.Module]]


class Program:
    """A model's training pass for up to K clients at once, in place on `weights` and `gradient`.

    Attributes:
        weights: trained parameters in the model's order, ``[K, P]``.
        gradient: what the last `backward` or `weighted` set, ``[K, P]``.
        is_random: whether a layer draws from torch's generator: one client at a time then.

    Raises:
        NotAChain: the model is not a chain of layers.
        NoStep: a layer or an option of one has no step; the text names it.
    """

    def __init__(self, model: nn.Module, layout: Layout, max_clients: int) -> None:
        chain = chain_of(model)
        size = sum(parameter.numel() for parameter in trained_parameters(model))
        self.weights, self.gradient = (torch.zeros(max_clients, size) for _ in range(2))
        self._frozen: dict[str, Tensor] = {}
        self._slots = self._make_slots(model, max_clients)
        self._trained = [n for n, value in model.named_parameters() if value.requires_grad]
        self._layout = layout
        self._check(chain)
        self._steps = [self._step(name, layer) for name, layer in pool_first(chain)]
        self._first_trained = next(
            number
            for number, step in enumerate(self._steps)
            if any(slot.gradient is not None for slot in step.slots.values())
        )
        self.is_random = any(step.is_random for step in self._steps)

    def _make_slots(self, model: nn.Module, max_clients: int) -> dict[nn.Parameter, Slot]:
        slots, start = {}, 0
        for name, parameter in model.named_parameters():
            shape = (max_clients, *parameter.shape)
            if parameter.requires_grad:
                part = slice(start, start + parameter.numel())
                start = part.stop
                buffers = self.weights[:, part], self.gradient[:, part]
                slots[parameter] = Slot(*(buffer.view(shape) for buffer in buffers))
            else:
                self._frozen[name] = torch.zeros(parameter.shape)
                slots[parameter] = Slot(self._frozen[name].expand(shape), None)
        return slots

    def _check(self, chain: Chain) -> None:
        """Refuse a layer that is used twice, and a trained parameter that is not used at all."""
        used: set[nn.Parameter] = set()
        for name, layer in chain:
            for parameter in layer.parameters():
                if parameter in used:
                    raise NotAChain(f"{name} shares its parameters with another layer")
                used.add(parameter)
        if any(value.requires_grad and value not in used for value in self._slots):
            raise NotAChain("a trained parameter belongs to no layer of the chain")
        if not self._trained:
            raise NotAChain("no parameter is trained")

    def _step(self, name: str, layer: nn.Module) -> Step:
        kind = type(layer)
        ours = kind is Rows or kind is getattr(nn, kind.__name__, None)
        if not ours or kind.__name__ not in STEPS:
            raise NoStep(f"layer {name} is a {kind.__name__}, which has no step")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise NoStep(f"layer {name} has hooks")
        slots = {inner: self._slots[value] for inner, value in layer.named_parameters()}
        try:
            return STEPS[kind.__name__](layer, slots)
        except NoStep as error:
            raise NoStep(f"layer {name} ({kind.__name__}) {error}") from error

    def load(self, parent: Vector, starts: Sequence[Vector | None]) -> list[Tensor]:
        """Give each client its start, or the parent; return the trained part of each, ``[P]``."""
        views = self._layout.views(parent)
        for name, value in self._frozen.items():
            value.copy_(torch.tensor(views[name]))
        common = self.flatten(parent)
        found = [common if start is None else self.flatten(start) for start in starts]
        for weights, start in zip(self.weights, found, strict=False):
            weights.copy_(start)
        self.activate(len(starts))
        return found

    def activate(self, num_clients: int) -> None:
        """Go on with the first clients only."""
        for slot in self._slots.values():
            slot.activate(num_clients)

    def flatten(self, vector: Vector) -> Tensor:
        """Return the trained parameters' part of a vector of the layout, ``[P]``."""
        views = self._layout.views(vector)
        return torch.from_numpy(np.concatenate([views[name].ravel() for name in self._trained]))

    def unflatten(self, values: Tensor) -> Vector:
        """Return ``[P]`` as a vector of the layout, with zeros for what is not trained.

        May share memory with the values.
        """
        if tuple(self._trained) == self._layout.names:
            return values.numpy()
        vector = np.zeros(self._layout.size, np.float32)
        views, start = self._layout.views(vector), 0
        for name in self._trained:
            part = slice(start, start + views[name].size)
            views[name][...] = values[part].numpy().reshape(views[name].shape)
            start = part.stop
        return vector

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's outputs for ``[K, B, ...]``, K as many as are active."""
        for step in self._steps:
            x = step.forward(x)
        return x

    def backward(self, grad: Tensor) -> None:
        """Set `gradient`, given the outputs'."""
        passed: Tensor | None = grad
        for number in range(len(self._steps) - 1, self._first_trained - 1, -1):
            assert passed is not None
            passed = self._steps[number].backward(passed, number > self._first_trained)

    def norms(self, grad: Tensor) -> Tensor:
        """Return each example's gradient norm, ``[K, B]``, given the outputs' own gradients."""
        total = torch.zeros(grad.shape[:2])
        passed: Tensor | None = grad
        for number in range(len(self._steps) - 1, self._first_trained - 1, -1):
            assert passed is not None
            squares, passed = self._steps[number].squares(passed, number > self._first_trained)
            if squares is not None:
                total += squares
        return total.sqrt_()

    def weighted(self, coefficients: Tensor) -> None:
        """Set `gradient` to the examples' times these, ``[K, B]``, summed; call `norms` first."""
        for step in self._steps[self._first_trained :]:
            step.weighted(coefficients)


def pool_first(chain: Chain) -> Chain:
    """Put max pooling before an activation that keeps the order of values: it is then cheaper."""
    chain = [entry for entry in chain if not isinstance(entry[1], nn.Identity)]
    for number in range(1, len(chain)):
        pools = type(chain[number][1]) is nn.MaxPool2d
        if pools and isinstance(chain[number - 1][1], MONOTONE):
            chain[number - 1 : number + 1] = chain[number], chain[number - 1]
    return chain
