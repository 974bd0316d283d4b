"""Optimisers of many clients' stacked weights, step for step those of ``torch.optim``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fedge.naming import Registry
from fedge.settings import Hyperparameters
from fedge.training.sgd import ADAM_BETAS, ADAM_EPS
from fedge.training.stacked.gradients import Gradients, Product


class StackedOptimizer(Protocol):
    """Changes stacked weights by the gradients of the first so many clients."""

    def step(self, gradients: Gradients, num_active: int) -> None:
        """Take one step; weights without a gradient stay as they are."""
        ...


class Additions:
    """What joins each gradient: the client term, then weight decay.

    Args:
        starts: the global weights by name, ``[*shape]``.
        corrections: SCAFFOLD's by name, ``[K, *shape]``; empty where there are none.
    """

    def __init__(
        self, hyper: Hyperparameters, starts: dict[str, Tensor], corrections: dict[str, Tensor]
    ) -> None:
        self._mu = hyper.proximal_mu if hyper.client_term == "fedprox" else 0.0
        self._decay = hyper.weight_decay
        self._starts = starts
        self._corrections = corrections

    @property
    def are_none(self) -> bool:
        """Tell whether gradients stay as they are."""
        return not (self._mu or self._decay or self._corrections)

    def add(self, name: str, gradient: Tensor, weight: Tensor) -> Tensor:
        """Add to a gradient in place, at these weights, both ``[active, *shape]``."""
        if self._mu:
            gradient.add_(weight - self._starts[name], alpha=self._mu)
        if self._corrections:
            gradient.add_(self._corrections[name][: len(weight)])
        if self._decay:
            gradient.add_(weight, alpha=self._decay)
        return gradient


MakeOptimizer = Callable[[dict[str, Tensor], Additions, Hyperparameters], StackedOptimizer]

STACKED_OPTIMIZERS: Registry[MakeOptimizer] = Registry("stacked optimizer")


@STACKED_OPTIMIZERS.register("sgd")
class StackedSgd:
    """SGD with momentum; without it a product is added to the weights and never held."""

    def __init__(
        self, weights: dict[str, Tensor], additions: Additions, hyper: Hyperparameters
    ) -> None:
        self._weights = weights
        self._additions = additions
        self._rate = hyper.learning_rate
        self._momentum = hyper.momentum
        self._speeds = (
            {name: torch.zeros_like(value) for name, value in weights.items()}
            if hyper.momentum
            else {}
        )

    def step(self, gradients: Gradients, num_active: int) -> None:
        """Take one step; weights without a gradient stay as they are."""
        plain = self._additions.are_none and not self._speeds
        for name, found in gradients.items():
            weight = self._weights[name][:num_active]
            if plain and isinstance(found, Product) and found.left.dtype == weight.dtype:
                weight.baddbmm_(found.left, found.right, alpha=-self._rate)
                continue
            gradient = self._additions.add(name, _value(found), weight)
            if self._speeds:
                speed = self._speeds[name][:num_active]
                gradient = speed.mul_(self._momentum).add_(gradient)
            weight.sub_(gradient, alpha=self._rate)


@STACKED_OPTIMIZERS.register("adam")
class StackedAdam:
    """Adam. Source: Kingma and Ba 2015, arXiv:1412.6980."""

    def __init__(
        self, weights: dict[str, Tensor], additions: Additions, hyper: Hyperparameters
    ) -> None:
        self._weights = weights
        self._additions = additions
        self._rate = hyper.learning_rate
        self._means = {name: torch.zeros_like(value) for name, value in weights.items()}
        self._squares = {name: torch.zeros_like(value) for name, value in weights.items()}
        self._num_steps = 0

    def step(self, gradients: Gradients, num_active: int) -> None:
        """Take one step; weights without a gradient stay as they are."""
        self._num_steps += 1
        first, second = ADAM_BETAS
        rate = self._rate / (1 - first**self._num_steps)
        root = math.sqrt(1 - second**self._num_steps)
        for name, found in gradients.items():
            weight = self._weights[name][:num_active]
            gradient = self._additions.add(name, _value(found), weight)
            mean = self._means[name][:num_active].lerp_(gradient, 1 - first)
            square = self._squares[name][:num_active].mul_(second)
            square.addcmul_(gradient, gradient, value=1 - second)
            weight.addcdiv_(mean, square.sqrt().div_(root).add_(ADAM_EPS), value=-rate)


def _value(gradient: Tensor | Product) -> Tensor:
    return gradient.value() if isinstance(gradient, Product) else gradient
