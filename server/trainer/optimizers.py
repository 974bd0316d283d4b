"""How a refinement steps along its gradients, picked by name.

They are elementwise, so that torch's own, run on a process' pieces, do what they would do on the
whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fedge.naming import Registry
from server.trainer.spec import RefineSpec

if TYPE_CHECKING:  # torch's meshes take a second to import, and names are all that some want
    from server.trainer.parallel.pieces import Piece


class Optimizer(Protocol):
    """Moves the pieces along their gradients."""

    def step(self) -> None:
        """Take one step."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state by name for a distributed checkpoint, which is loaded into it."""
        ...


OPTIMIZERS: Registry[Callable[[Sequence[Piece], RefineSpec], Optimizer]] = Registry(
    "refinement optimizer"
)


class _TorchOptimizer:
    """An optimizer of torch whose state is there from the start and has the pieces' names."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, pieces: Sequence[Piece], kinds: Sequence[str]
    ) -> None:
        self._optimizer = optimizer
        self._pieces = pieces
        self._kinds = kinds
        self._locals: list[Tensor] = optimizer.param_groups[0]["params"]
        for local in self._locals:
            for kind in kinds:
                optimizer.state[local][kind] = torch.zeros_like(local)

    def step(self) -> None:
        """Take one step."""
        for piece, local in zip(self._pieces, self._locals, strict=True):
            local.grad = piece.local_grad()
        self._optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state by name, ``<tensor>.<kind>``."""
        return {
            f"{piece.name}.{kind}": piece.wrap(self._optimizer.state[local][kind])
            for piece, local in zip(self._pieces, self._locals, strict=True)
            for kind in self._kinds
        }


@OPTIMIZERS.register("sgd")
class Sgd(_TorchOptimizer):
    """SGD with momentum; weight decay is added to the gradient."""

    def __init__(self, pieces: Sequence[Piece], spec: RefineSpec) -> None:
        optimizer = torch.optim.SGD(
            _leaves(pieces),
            spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
        )
        super().__init__(optimizer, pieces, ("momentum_buffer",) if spec.momentum else ())


@OPTIMIZERS.register("adamw")
class AdamW(_TorchOptimizer):
    """Adam with betas 0.9 and 0.999 and decoupled weight decay; it has no use for momentum."""

    def __init__(self, pieces: Sequence[Piece], spec: RefineSpec) -> None:
        leaves = _leaves(pieces)
        optimizer = torch.optim.AdamW(
            leaves, spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        super().__init__(optimizer, pieces, ("exp_avg", "exp_avg_sq"))
        self._steps = [torch.zeros((), device=leaf.device) for leaf in leaves]
        for leaf, step in zip(leaves, self._steps, strict=True):
            optimizer.state[leaf]["step"] = step

    def state_dict(self) -> dict[str, Tensor]:
        """Return moments and numbers of steps by name."""
        steps = {
            f"{piece.name}.step": step
            for piece, step in zip(self._pieces, self._steps, strict=True)
        }
        return super().state_dict() | steps


def _leaves(pieces: Sequence[Piece]) -> list[Tensor]:
    """Return tensors that share the pieces' memory and have gradients of their own."""
    return [piece.local.detach().requires_grad_() for piece in pieces]
