"""The steps of one chunk of clients, from the global weights to their deltas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedge.params import Layout, Vector
from fedge.settings import Hyperparameters
from fedge.training.cohort_contracts import Batches
from fedge.training.stacked.chunk import Chunk
from fedge.training.stacked.gradients import Engine, Gradients, StepInputs
from fedge.training.stacked.graphs import CapturedStep
from fedge.training.stacked.optimizers import STACKED_OPTIMIZERS, Additions


class ChunkRun:
    """Trains a chunk; weights, optimiser state and what was seen on the way are its own.

    Attributes:
        values: what must be finite of each row, ``[T, K, W]``: its loss, under DP its gradient's
            norm.
        losses: ``[T, K, W]``.
    """

    def __init__(
        self,
        engine: Engine,
        chunk: Chunk,
        parent: Vector,
        layout: Layout,
        names: list[str],
        hyper: Hyperparameters,
        device: torch.device,
    ) -> None:
        self._engine = engine
        self._chunk = chunk
        self._layout = layout
        self._names = names
        views = layout.views(parent)
        self._starts = {name: torch.tensor(views[name], device=device) for name in names}
        self._begins = _begins(chunk.members, self._starts, layout, device)
        self._weights = {
            name: begin.clone(memory_format=torch.contiguous_format)
            for name, begin in self._begins.items()
        }
        corrections = _corrections(chunk.members, layout, names, device)
        additions = Additions(hyper, self._starts, corrections)
        self._optimizer = STACKED_OPTIMIZERS[hyper.optimizer](self._weights, additions, hyper)
        self._noise = _Noise(chunk.members, self._starts, device)
        # Adam counts its steps in Python, which a graph would not see.
        self._may_capture = device.type == "cuda" and hyper.optimizer == "sgd"
        self.losses = torch.zeros(chunk.valid.shape, device=device)
        self.values = self.losses

    def run(self) -> None:
        """Take every step."""
        if self._chunk.members[0].plan is not None:
            self.values = torch.zeros_like(self.losses)
            for step, count in enumerate(self._chunk.active):
                self._private_step(step, count)
        elif self._may_capture:
            self._run_captured()
        else:
            for step, count in enumerate(self._chunk.active):
                self.losses[step, :count] = self._step(self._chunk.batch(step), count)

    def deltas(self) -> Tensor:
        """Return trained less global weights on the CPU, ``[K, layout.size]``."""
        layout = self._layout
        make = torch.zeros if len(self._weights) < len(layout.names) else torch.empty
        found = make(len(self._chunk.members), layout.size, device=self.losses.device)
        for name, start, size in zip(layout.names, layout.offsets, layout.sizes, strict=False):
            if name in self._weights:
                ends, begins = self._weights[name], self._begins[name]
                torch.sub(ends.flatten(1), begins.flatten(1), out=found[:, start : start + size])
        return found.cpu()

    def _active(self, count: int) -> dict[str, Tensor]:
        return {name: weight[:count] for name, weight in self._weights.items()}

    def _step(self, batch: StepInputs, count: int) -> Tensor:
        losses, gradients = self._engine.gradients(self._active(count), batch)
        self._optimizer.step(gradients, count)
        return losses

    def _private_step(self, step: int, count: int) -> None:
        batch = self._chunk.batch(step)
        losses, norms, sums = self._engine.clipped(
            self._active(count), batch, self._noise.clip_norms[:count]
        )
        self._optimizer.step(self._noise.add(sums, step, count), count)
        self.losses[step, :count] = losses
        self.values[step, :count] = norms

    def _run_captured(self) -> None:
        chunk = self._chunk
        count = len(chunk.members)
        captured = CapturedStep(
            lambda index, shares: self._step(chunk.gather(index, shares), count)
        )
        for step, active in enumerate(chunk.active):
            if active == count:
                self.losses[step] = captured(*chunk.positions(step))
            else:
                self.losses[step, :active] = self._step(chunk.batch(step), active)


class _Noise:
    """Turns sums of clipped gradients into noisy means over the public expected batch."""

    def __init__(
        self,
        members: Sequence[Batches],
        starts: dict[str, Tensor],
        device: torch.device,
    ) -> None:
        self._members = members
        self._device = device
        self._sizes = {name: start.numel() for name, start in starts.items()}
        plans = [member.plan for member in members if member.plan is not None]
        self.clip_norms = torch.tensor([plan.clip_norm for plan in plans], device=device)
        divisors = [plan.expected_batch for plan in plans]
        self._divisors = torch.tensor(divisors, device=device)
        deviations = [plan.noise_multiplier * plan.clip_norm for plan in plans]
        self._scales = torch.tensor(deviations, device=device) / self._divisors

    def add(self, sums: Gradients, step: int, count: int) -> Gradients:
        """Return the gradients of the first so many members."""
        normals = torch.stack([(member.noise or [])[step] for member in self._members[:count]])
        noise = normals.float().to(self._device).mul_(self._scales[:count, None])
        noisy: Gradients = {}
        parts = torch.split(noise, list(self._sizes.values()), dim=1)
        for name, part in zip(self._sizes, parts, strict=True):
            found = sums[name]
            total = found if isinstance(found, Tensor) else found.value()
            divisors = self._divisors[:count].view(-1, *[1] * (total.dim() - 1))
            noisy[name] = total.div_(divisors).add_(part.view(total.shape))
        return noisy


def _begins(
    members: Sequence[Batches], starts: dict[str, Tensor], layout: Layout, device: torch.device
) -> dict[str, Tensor]:
    """Return what each member starts from by name, ``[K, *shape]``; one memory where all agree."""
    if all(member.start is None for member in members):
        return {name: start.expand(len(members), *start.shape) for name, start in starts.items()}
    begins = {name: torch.stack([start] * len(members)) for name, start in starts.items()}
    for at, member in enumerate(members):
        if member.start is not None:
            views = layout.views(member.start)
            for name, begin in begins.items():
                begin[at] = torch.tensor(views[name], device=device)
    return begins


def _corrections(
    members: Sequence[Batches],
    layout: Layout,
    names: list[str],
    device: torch.device,
) -> dict[str, Tensor]:
    """Return SCAFFOLD's corrections by name, ``[K, *shape]``; none where no member has one."""
    if all(member.correction is None for member in members):
        return {}
    zero = np.zeros(layout.size, np.float32)
    rows = np.stack(
        [zero if member.correction is None else member.correction for member in members]
    )
    found = {}
    for name in names:
        at = layout.names.index(name)
        part = torch.from_numpy(rows[:, layout.offsets[at] : layout.offsets[at + 1]])
        found[name] = part.reshape(len(members), *layout.shapes[at]).contiguous().to(device)
    return found
