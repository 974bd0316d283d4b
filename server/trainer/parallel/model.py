"""A model that several processes train as if they were one; each calls every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedge.params import Vector
from fedge.split_plan import SplitPlan
from fedge.weights import layout_of
from server.trainer.parallel.chain import Stage, check_plan
from server.trainer.parallel.degrees import MeshConfig
from server.trainer.parallel.gradients import clip, gradient_norm, sum_over_copies
from server.trainer.parallel.mesh import Mesh
from server.trainer.parallel.parallelize import parallelize
from server.trainer.parallel.pieces import Piece, pieces_of
from server.trainer.parallel.pipeline import Passes, PipelinedPasses, WholePasses
from server.trainer.parallel.shares import num_micro_batches, share_of

Targets = Tensor | tuple[Tensor, ...]
LossesOf = Callable[[Tensor, Any], Tensor]


class ParallelModel:
    """One process' part of a model.

    Args:
        model: the whole model, the same on every process; it is taken apart.
        plan: how it may be cut; None where data parallelism is all that the mesh asks for.

    Attributes:
        layout: of the whole model.

    Raises:
        TaskError: the plan is not this model's.
    """

    def __init__(
        self, model: nn.Module, mesh: Mesh, config: MeshConfig, plan: SplitPlan | None = None
    ) -> None:
        if plan is not None:
            check_plan(plan, model)
        self.layout = layout_of(model)
        self._mesh = mesh
        self._stage = _stage_of(model, mesh, plan).to(mesh.device).train()
        parallelize(self._stage, mesh, config, plan)
        self._num_micro_batches = num_micro_batches(mesh.degrees, config)
        self._all_pieces = pieces_of(self._stage, mesh)
        self._pieces = _without_doubles(self._all_pieces)
        self._anchor: list[Tensor] = []
        self._passes: Passes = (
            WholePasses(self._stage)
            if mesh.degrees.pipeline == 1
            else PipelinedPasses(self._stage, mesh, config.schedule)
        )

    def load(self, weights: Vector) -> None:
        """Take over a vector that every process has."""
        views = self.layout.views(weights)
        for piece in self._all_pieces:
            piece.write(torch.tensor(views[piece.name]))

    def compute(self, inputs: Tensor, targets: Targets, losses_of: LossesOf) -> float:
        """Leave the gradients of the batch's mean loss, and return that loss, on every process.

        Args:
            inputs: ``[B, ...]``, the whole batch, the same on every process.
            targets: ``[B, ...]``, or a tuple of such; what a loss needs beside the outputs.
            losses_of: returns one loss an example, ``[b]``, for outputs and targets ``[b, ...]``.
        """
        mesh = self._mesh
        for piece in self._pieces:
            piece.tensor.grad = None
        share = share_of(len(inputs), mesh.data_place, mesh.degrees.data, self._num_micro_batches)
        weights = share.weights.to(mesh.device)
        mine = _take(targets, share.positions, mesh.device)

        def loss_at(outputs: Tensor, places: Tensor) -> Tensor:
            losses = losses_of(outputs.float(), _take(mine, places, mesh.device))
            return (losses * weights[places]).sum()

        chosen = inputs[share.positions].to(mesh.device, non_blocking=True)
        loss = self._passes.run(chosen, share, loss_at)
        if mesh.degrees.shard == 1:
            sum_over_copies(self._pieces, mesh)
        return float(mesh.add_up(loss / mesh.degrees.tensor).item())

    def clip_gradients(self, max_norm: float) -> float:
        """Scale the gradients down to this norm over the whole mesh; returns what it was."""
        norm = gradient_norm(self._pieces, self._mesh)
        clip(self._pieces, norm, max_norm)
        return norm

    @torch.no_grad()
    def set_anchor(self) -> None:
        """Remember the weights as they are now, for `add_pull`."""
        self._anchor = [piece.local.clone() for piece in self._pieces]

    @torch.no_grad()
    def add_pull(self, strength: float) -> None:
        """Add to the gradients those of ``strength / 2 × ‖weights − anchor‖²``."""
        for piece, anchor in zip(self._pieces, self._anchor, strict=True):
            piece.local_grad().add_(piece.local - anchor, alpha=strength)

    def parameters(self) -> list[Piece]:
        """Return this process' parts of the trained parameters, each once."""
        return self._pieces

    @torch.no_grad()
    def read(self) -> Vector:
        """Return the whole model's vector, on every process."""
        vector = torch.zeros(self.layout.size, device=self._mesh.device)
        tensors = dict(
            zip(self.layout.names, torch.split(vector, list(self.layout.sizes)), strict=True)
        )
        shapes = dict(zip(self.layout.names, self.layout.shapes, strict=True))
        for piece in self._all_pieces:
            piece.read_into(tensors[piece.name].view(shapes[piece.name]))
        self._mesh.add_up(vector)  # one process has each number, the others have 0 there
        found: Vector = vector.cpu().numpy()
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return this process' tensors by name for a distributed checkpoint.

        They are the live ones: a checkpoint is loaded into them.
        """
        return {piece.name: piece.wrap(piece.local) for piece in self._all_pieces}


def _stage_of(model: nn.Module, mesh: Mesh, plan: SplitPlan | None) -> nn.Module:
    if plan is None:
        return model
    return Stage(model, plan.stages(mesh.degrees.pipeline)[mesh.place("pipeline")])


def _without_doubles(pieces: list[Piece]) -> list[Piece]:
    """Return the trained pieces; a tied tensor has several names and counts once."""
    first = {id(piece.tensor): piece for piece in reversed(pieces) if piece.is_trained}
    return list(reversed(first.values()))


def _take(targets: Targets, positions: Tensor, device: torch.device) -> Targets:
    if isinstance(targets, tuple):
        return tuple(each[positions].to(device, non_blocking=True) for each in targets)
    return targets[positions].to(device, non_blocking=True)
