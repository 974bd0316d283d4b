"""What a client adds to its gradients so that it does not drift from the others.

A term knows the weights that training started from and what the server sent, and no example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.naming import Registry
from fedge.params import Layout, Vector
from fedge.personal import personal_part
from fedge.settings import Hyperparameters


class ClientTerm(Protocol):
    """Adjusts the gradients of one training before each step of its optimiser."""

    def add_to_gradients(self) -> None:
        """Add to the gradient of each parameter that has one."""
        ...


@dataclass(frozen=True)
class TermContext:
    """What a term is made from.

    Attributes:
        parameters: the model's trained and shared ones, at the global weights, by their name.
        correction: SCAFFOLD's server control less the client's, by name; None is zero.
    """

    parameters: dict[str, nn.Parameter]
    hyper: Hyperparameters
    correction: dict[str, Tensor] | None = None


TERMS: Registry[Callable[[TermContext], ClientTerm]] = Registry("client term")


@TERMS.register("none")
class NoTerm:
    """Plain training: gradients stay as they are."""

    def __init__(self, context: TermContext | None = None) -> None:
        """Take nothing from the context."""

    def add_to_gradients(self) -> None:
        """Leave the gradients as they are."""


@TERMS.register("fedprox")
class Proximal:
    """Pull to the global weights: the gradient of μ/2 · ‖w − w₀‖².

    Source: Li et al. 2020, arXiv:1812.06127.
    """

    def __init__(self, context: TermContext) -> None:
        self._mu = context.hyper.proximal_mu
        self._pairs = [(value, value.detach().clone()) for value in context.parameters.values()]

    def add_to_gradients(self) -> None:
        """Add μ times the way from the global weights."""
        for parameter, start in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self._mu)


@TERMS.register("scaffold")
class Control:
    """Replace the client's own direction by everybody's, as far as both are known.

    Source: Karimireddy et al. 2020, arXiv:1910.06378.
    """

    def __init__(self, context: TermContext) -> None:
        correction = context.correction or {}
        self._pairs = [(context.parameters[name], part) for name, part in correction.items()]

    def add_to_gradients(self) -> None:
        """Add the correction."""
        for parameter, part in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(part)


NO_TERM = NoTerm()


def make_term(
    model: nn.Module, layout: Layout, hyper: Hyperparameters, correction: Vector | None = None
) -> ClientTerm:
    """Return the term that the hyperparameters name, for a model at the global weights.

    Personal parameters are left alone: the global model says nothing of them.

    Raises:
        ConfigError: no term has that name, or no parameter a personal layer's.
        TaskError: the correction is of another layout, is not finite, or has no use.
    """
    part = personal_part(layout, hyper.personal_layers)
    personal = () if part is None else part.names
    parameters = {
        name: value
        for name, value in model.named_parameters()
        if value.requires_grad and name not in personal
    }
    parts = None
    if correction is not None:
        check_correction(correction, layout, hyper)
        views = layout.views(correction)
        parts = {name: torch.tensor(views[name]) for name in parameters}
    return TERMS[hyper.client_term](TermContext(parameters, hyper, parts))


def check_correction(correction: Vector, layout: Layout, hyper: Hyperparameters) -> None:
    """Refuse a correction that cannot be used.

    Raises:
        TaskError: it is of another layout, is not finite, or has no use.
    """
    if hyper.client_term != "scaffold":
        raise TaskError(
            f"the server sent a control, and train.client_term is {hyper.client_term!r}; it "
            "has a use with 'scaffold' only"
        )
    if correction.shape != (layout.size,):
        raise TaskError(
            f"the control has shape {list(correction.shape)}, the model needs [{layout.size}]"
        )
    if not np.isfinite(correction).all():
        raise TaskError("the control is not finite; nothing was trained")
