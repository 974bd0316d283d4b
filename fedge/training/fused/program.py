"""A chain of layers compiled to steps on flat buffers of weights and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedge.params import Layout, Vector
from fedge.training.fused import convolution, linear, norm, pointwise, pooling  # noqa: F401
from fedge.training.fused.chain import NotAChain, Rows, chain_of
from fedge.training.fused.entry import EntryStep
from fedge.training.fused.layers import STEPS, NoStep, Slot, Step
from fedge.training.fused.pointwise import MONOTONE
from fedge.training.sgd import trained_parameters

Chain = list[tuple[str, nn.Module]]


@dataclass(frozen=True, eq=False)
class _Place:
    """Where one parameter stands in a vector of the layout, and its value in the program."""

    start: int
    slot: Slot


class Program:
    """A model's training pass, in place on `weights` and `gradient`.

    Attributes:
        weights: trained parameters in the model's order, flat.
        gradient: what the last `backward` or `weighted` set, flat.

    Raises:
        NotAChain: the model is not a chain of layers.
        NoStep: a layer or an option of one has no step; the text names it.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self._chain = chain_of(model)
        size = sum(parameter.numel() for parameter in trained_parameters(model))
        self.weights, self.gradient = torch.zeros(size), torch.zeros(size)
        self._slots = self._make_slots(model)
        self._places = self._make_places(model, layout)
        self._check()
        for name, layer in self._chain:
            self._step(name, layer)
        self._compiled: dict[torch.Size, list[Step]] = {}
        self._steps: list[Step] = []
        self._first_trained = 0

    def _make_slots(self, model: nn.Module) -> dict[nn.Parameter, Slot]:
        slots, start = {}, 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                part = slice(start, start + parameter.numel())
                start = part.stop
                values = (
                    buffer[part].view(parameter.shape) for buffer in (self.weights, self.gradient)
                )
                slots[parameter] = Slot(*values)
            else:
                slots[parameter] = Slot(parameter.detach().clone(), None)
        return slots

    def _make_places(self, model: nn.Module, layout: Layout) -> list[_Place]:
        starts = dict(zip(layout.names, layout.offsets, strict=False))
        return [_Place(starts[n], self._slots[p]) for n, p in model.named_parameters()]

    def _check(self) -> None:
        """Refuse a layer that is used twice, and a trained parameter that is not used at all."""
        used: set[nn.Parameter] = set()
        for name, layer in self._chain:
            for parameter in layer.parameters():
                if parameter in used:
                    raise NotAChain(f"{name} shares its parameters with another layer")
                used.add(parameter)
        if any(p not in used for p, slot in self._slots.items() if slot.gradient is not None):
            raise NotAChain("a trained parameter belongs to no layer of the chain")
        if not used or not len(self.weights):
            raise NotAChain("no parameter is trained")

    def _layer_slots(self, layer: nn.Module) -> dict[str, Slot]:
        return {name: self._slots[value] for name, value in layer.named_parameters()}

    def _step(self, name: str, layer: nn.Module) -> Step:
        kind = type(layer)
        ours = kind is Rows or kind is getattr(nn, kind.__name__, None)
        if not ours or kind.__name__ not in STEPS:
            raise NoStep(f"layer {name} is a {kind.__name__}, which has no step")
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise NoStep(f"layer {name} has hooks")
        try:
            return STEPS[kind.__name__](layer, self._layer_slots(layer))
        except NoStep as error:
            raise NoStep(f"layer {name} ({kind.__name__}) {error}") from error

    def load(self, parent: Vector) -> None:
        """Set all parameters, frozen ones too."""
        source = torch.from_numpy(parent if parent.flags.writeable else parent.copy())
        for place in self._places:
            value = place.slot.value
            value.view(-1).copy_(source[place.start : place.start + value.numel()])

    def scatter(self, parts: Tensor, vector: Vector) -> Vector:
        """Write a flat vector of the trained parameters to their places in one of the layout."""
        values, start = parts.numpy(), 0
        for place in self._trained():
            size = place.slot.value.numel()
            vector[place.start : place.start + size] = values[start : start + size]
            start += size
        return vector

    def gather(self, vector: Vector) -> Tensor:
        """Return the trained parameters' part of a vector of the layout, flat."""
        parts = [vector[p.start : p.start + p.slot.value.numel()] for p in self._trained()]
        return torch.from_numpy(np.concatenate(parts))

    def _trained(self) -> list[_Place]:
        return [place for place in self._places if place.slot.gradient is not None]

    def prepare(self, inputs: Tensor) -> Tensor:
        """Compile for these inputs, ``[N, ...]``; return them in the form that `forward` takes."""
        shape = inputs.shape[1:]
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(shape)
        self._steps = self._compiled[shape]
        self._first_trained = next(
            number
            for number, step in enumerate(self._steps)
            if any(slot.gradient is not None for slot in step.slots.values())
        )
        return self._steps[0].prepare(inputs.contiguous())

    def _compile(self, shape: torch.Size) -> list[Step]:
        chain = pool_first(self._chain)
        if len(chain) > 1 and EntryStep.fits(chain[0][1], chain[1][1], shape):
            layer = chain[0][1]
            entry: Step = EntryStep(layer, self._layer_slots(layer), shape)
            return [entry, *(self._step(*entry) for entry in chain[2:])]
        return [self._step(*entry) for entry in chain]

    def forward(self, prepared: Tensor, positions: Tensor) -> Tensor:
        """Return the model's outputs for a batch of what `prepare` returned."""
        x = self._steps[0].take(prepared, positions)
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
        """Return each example's gradient norm, ``[B]``, given each output's own gradient."""
        total = torch.zeros(len(grad))
        passed: Tensor | None = grad
        for number in range(len(self._steps) - 1, self._first_trained - 1, -1):
            assert passed is not None
            squares, passed = self._steps[number].squares(passed, number > self._first_trained)
            if squares is not None:
                total += squares
        return total.sqrt_()

    def weighted(self, coefficients: Tensor) -> None:
        """Set `gradient` to the examples' gradients times these, summed; call `norms` first."""
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
