"""A model that several processes train as if they were one; each calls every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from server.trainer.parallel.shares import Share, num_micro_batches, share_of

Targets = Tensor | tuple[Tensor, ...]
LossesOf = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Placed:
    """One process' part of a batch on its device.

    Attributes:
        inputs, targets: ``[M × m, ...]``.
        weights: of its examples in the batch's mean, ``[M × m]``.
    """

    inputs: Tensor
    targets: Targets
    share: Share
    weights: Tensor


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

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._mesh.device

    def load(self, weights: Vector) -> None:
        """Take over a vector that every process has."""
        views = self.layout.views(weights)
        for piece in self._all_pieces:
            piece.write(torch.tensor(views[piece.name]))

    def place(self, inputs: Tensor, targets: Targets, positions: Tensor) -> Placed:
        """Return this process' part of a batch, on its device.

        Args:
            inputs: ``[N, ...]``, all rows; the same on every process.
            targets: ``[N, ...]``, or a tuple of such; what a loss needs beside the outputs.
            positions: the batch's rows, ``[B]``, the same on every process.
        """
        mesh = self._mesh
        share = share_of(
            len(positions), mesh.data_place, mesh.degrees.data, self._num_micro_batches
        )
        chosen = positions[share.positions]
        return Placed(
            _to(inputs[chosen], mesh.device),
            _take(targets, chosen, mesh.device),
            share,
            share.weights.to(mesh.device),
        )

    def compute(self, batch: Placed, losses_of: LossesOf) -> float:
        """Leave the gradients of a batch's mean loss, and return that loss, on every process.

        Args:
            losses_of: returns one loss an example, ``[b]``, for outputs and targets ``[b, ...]``.
        """
        for piece in self._pieces:
            piece.tensor.grad = None

        def loss_at(outputs: Tensor, places: Tensor) -> Tensor:
            losses = losses_of(outputs.float(), _take(batch.targets, places, places.device))
            return (losses * batch.weights[places]).sum()

        loss = self._passes.run(batch.inputs, batch.share, loss_at)
        if self._mesh.degrees.shard == 1:
            sum_over_copies(self._pieces, self._mesh)
        return float(self._mesh.add_up(loss / self._mesh.degrees.tensor).item())

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
        return tuple(_to(each[positions], device) for each in targets)
    return _to(targets[positions], device)


def _to(rows: Tensor, device: torch.device) -> Tensor:
    """Return rows on a device; from pinned memory they travel while it computes."""
    if rows.device == device or device.type == "cpu":
        return rows.to(device)
    return rows.pin_memory().to(device, non_blocking=True)
