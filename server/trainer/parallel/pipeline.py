"""Forward and backward of one share of a batch: by this process alone, or by its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from fedge.naming import Registry
from server.trainer.parallel.mesh import Mesh
from server.trainer.parallel.shares import Share

LossAt = Callable[[Tensor, Tensor], Tensor]
"""Takes outputs ``[m, ...]`` and places ``[m]`` in the share; returns their weighted sum."""

SCHEDULES: Registry[type[PipelineScheduleSingle]] = Registry("pipeline schedule")
SCHEDULES.register("gpipe")(ScheduleGPipe)
SCHEDULES.register("1f1b")(Schedule1F1B)


class Passes(Protocol):
    """One forward and backward pass over a share."""

    def run(self, inputs: Tensor, share: Share, loss_at: LossAt) -> Tensor:
        """Leave the share's gradients and return its part of the loss, 0 where none is known.

        Args:
            inputs: ``[M × m, ...]`` on this process' device.
        """
        ...


class WholePasses:
    """The model from input to loss in this process, a micro-batch after the other."""

    def __init__(self, stage: nn.Module) -> None:
        self._stage = stage

    def run(self, inputs: Tensor, share: Share, loss_at: LossAt) -> Tensor:
        """Add up the micro-batches' gradients; processes exchange them after the last."""
        total = torch.zeros((), device=inputs.device)
        places = torch.arange(len(inputs), device=inputs.device)
        for number, chosen in enumerate(torch.split(places, share.micro_batch_size)):
            self._exchange_now(number == share.num_micro_batches - 1)
            loss = loss_at(self._stage(inputs[chosen]), chosen)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _exchange_now(self, now: bool) -> None:
        if isinstance(self._stage, FSDPModule):
            self._stage.set_is_last_backward(now)
            self._stage.set_requires_gradient_sync(now)


class PipelinedPasses:
    """One stage of several; activations go on to the next, their gradients back."""

    def __init__(self, stage: nn.Module, mesh: Mesh, schedule: str) -> None:
        self._stage = stage
        self._mesh = mesh
        self._schedule = SCHEDULES[schedule]
        self._made: dict[tuple[Any, ...], PipelineScheduleSingle] = {}
        self._loss_at: LossAt | None = None

    def run(self, inputs: Tensor, share: Share, loss_at: LossAt) -> Tensor:
        """Run the schedule; the last stage returns the loss."""
        self._loss_at = loss_at
        schedule = self._schedule_for(inputs, share)
        place, last = self._mesh.place("pipeline"), self._mesh.degrees.pipeline - 1
        total = torch.zeros((), device=inputs.device)
        if place == 0:
            schedule.step(inputs)
        elif place == last:
            losses: list[Tensor] = []
            places = torch.arange(len(inputs), device=inputs.device)
            schedule.step(target=places, losses=losses, return_outputs=False)
            total = torch.stack([loss.detach() for loss in losses]).sum()
        else:
            schedule.step()
        self._loss_at = None
        return total

    def _schedule_for(self, inputs: Tensor, share: Share) -> PipelineScheduleSingle:
        """Return the schedule for these shapes: it learns once what stages pass on."""
        key = (share.num_micro_batches, share.micro_batch_size, inputs.shape[1:], inputs.dtype)
        if key not in self._made:
            stage = PipelineStage(
                self._stage,
                self._mesh.place("pipeline"),
                self._mesh.degrees.pipeline,
                inputs.device,
                group=self._mesh.group("pipeline"),
            )
            self._made[key] = self._schedule(
                stage, share.num_micro_batches, loss_fn=self._loss, scale_grads=False
            )
        return self._made[key]

    def _loss(self, outputs: Tensor, places: Tensor) -> Tensor:
        assert self._loss_at is not None
        return self._loss_at(outputs, places)
