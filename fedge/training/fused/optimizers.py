"""Optimisers of flat vectors, one a client, each update a few passes over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fedge.naming import Registry
from fedge.settings import Hyperparameters


class FlatOptimizer(Protocol):
    """Updates weights ``[K, P]`` in place; may overwrite the gradient.

    Clients that are done are left out of later steps: K only falls.
    """

    def step(self, weights: Tensor, gradient: Tensor) -> None:
        """Take one step."""
        ...


FLAT_OPTIMIZERS: Registry[Callable[[Hyperparameters], FlatOptimizer]] = Registry("flat optimiser")


@FLAT_OPTIMIZERS.register("sgd")
class FlatSgd:
    """SGD with momentum and weight decay as `torch.optim.SGD` has them."""

    def __init__(self, hyper: Hyperparameters) -> None:
        self._hyper = hyper
        self._velocity: Tensor | None = None

    def step(self, weights: Tensor, gradient: Tensor) -> None:
        """Take one step."""
        hyper = self._hyper
        if hyper.weight_decay:
            gradient.add_(weights, alpha=hyper.weight_decay)
        if hyper.momentum:
            if self._velocity is None:
                self._velocity = gradient.clone()
            else:
                velocity = self._velocity[: len(gradient)]
                torch.add(gradient, velocity, alpha=hyper.momentum, out=velocity)
            gradient = self._velocity[: len(gradient)]
        weights.sub_(gradient, alpha=hyper.learning_rate)


@FLAT_OPTIMIZERS.register("adam")
class FlatAdam:
    """Adam with the usual constants and L2 weight decay, as `torch.optim.Adam` has them.

    Source: Kingma and Ba 2015, arXiv:1412.6980.
    """

    _BETAS = (0.9, 0.999)
    _EPS = 1e-8

    def __init__(self, hyper: Hyperparameters) -> None:
        self._hyper = hyper
        self._moments: tuple[Tensor, Tensor] | None = None
        self._num_steps = 0

    def step(self, weights: Tensor, gradient: Tensor) -> None:
        """Take one step."""
        if self._hyper.weight_decay:
            gradient.add_(weights, alpha=self._hyper.weight_decay)
        if self._moments is None:
            self._moments = (torch.zeros_like(gradient), torch.zeros_like(gradient))
        mean, square = (moment[: len(gradient)] for moment in self._moments)
        first, second = self._BETAS
        self._num_steps += 1
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = math.sqrt(1 - second**self._num_steps)
        torch.sqrt(square, out=gradient).div_(root).add_(self._EPS)
        rate = self._hyper.learning_rate / (1 - first**self._num_steps)
        weights.addcdiv_(mean, gradient, value=-rate)
