"""How a refinement steps along its gradients, picked by name.

As torch.optim has them, whose import costs a second or more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from fedge.naming import Registry
from server.trainer.spec import RefineSpec

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class Optimizer(Protocol):
    """Moves parameters in place."""

    def step(self) -> None:
        """Take one step; every parameter has its gradient."""
        ...


OPTIMIZERS: Registry[Callable[[list[nn.Parameter], RefineSpec], Optimizer]] = Registry(
    "refinement optimizer"
)


@OPTIMIZERS.register("sgd")
class MomentumSgd:
    """SGD with momentum; weight decay is added to the gradient."""

    def __init__(self, parameters: list[nn.Parameter], spec: RefineSpec) -> None:
        self._parameters = parameters
        self._speeds = [torch.zeros_like(each) for each in parameters]
        self._spec = spec

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters along their gradients."""
        spec = self._spec
        for each, speed in zip(self._parameters, self._speeds, strict=True):
            assert each.grad is not None
            speed.mul_(spec.momentum).add_(each.grad).add_(each, alpha=spec.weight_decay)
            each.sub_(speed, alpha=spec.learning_rate)


@OPTIMIZERS.register("adamw")
class AdamW:
    """Adam with betas 0.9 and 0.999 and decoupled weight decay; it has no use for momentum."""

    def __init__(self, parameters: list[nn.Parameter], spec: RefineSpec) -> None:
        self._parameters = parameters
        self._means = [torch.zeros_like(each) for each in parameters]
        self._squares = [torch.zeros_like(each) for each in parameters]
        self._spec = spec
        self._num_steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters along their gradients."""
        self._num_steps += 1
        rate = self._spec.learning_rate
        mean_scale = 1 - BETA_1**self._num_steps
        square_scale = 1 - BETA_2**self._num_steps
        moments = zip(self._parameters, self._means, self._squares, strict=True)
        for each, mean, square in moments:
            assert each.grad is not None
            each.mul_(1 - rate * self._spec.weight_decay)
            mean.lerp_(each.grad, 1 - BETA_1)
            square.mul_(BETA_2).addcmul_(each.grad, each.grad, value=1 - BETA_2)
            spread = (square / square_scale).sqrt_().add_(EPSILON)
            each.addcdiv_(mean, spread, value=-rate / mean_scale)
