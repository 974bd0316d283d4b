"""The `stacked` backend: buckets of like clients, cut into chunks that fit, each one run."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.params import BYTES_PER_PARAMETER, Layout, Vector
from fedge.settings import Hyperparameters
from fedge.task import Task
from fedge.training.batches import overflow_error
from fedge.training.cohort_contracts import BACKENDS, Batches, CohortSettings, Outcome
from fedge.training.local import DIVERGED, LocalResult
from fedge.training.stacked.chain import Chain
from fedge.training.stacked.chunk import Chunk, bucket_key
from fedge.training.stacked.gradients import Engine
from fedge.training.stacked.run import ChunkRun
from fedge.training.stacked.vmapped import Vmapped

# More clients at once are no faster: their weights leave the caches.
_MAX_CLIENTS = 128
# Weights, the gradient or product in hand, the delta, and as much again for what copies need.
_WEIGHT_COPIES = 5
_ACTIVATION_COPIES = 4
_DROPOUT = (nn.modules.dropout._DropoutNd, nn.RReLU)


@BACKENDS.register("stacked")
class StackedBackend:
    """Trains many clients as one batch of models.

    Deltas equal those of `LocalTrainer` to 1e-5 in float32. With bfloat16 forward and backward
    passes, which keep 8 bits, the error is relative to the largest weight change: a few per cent
    of it in chains of Linear layers, up to 15 per cent below normalisation layers. So a delta is
    within 1e-3 as long as no weight moves by more than about 0.01 in a round.

    A client's chunk, width and position follow from the members of the call, its arithmetic from
    itself alone: on one CPU thread its result is the same to the bit whatever the chunk size and
    the others, as far as MKL computes one product of a batch alike wherever it lies in memory.
    It does for layer widths that are multiples of 16 and outputs up to 16; odd widths such as 9
    or 30 can differ in the last bit, by about 1e-7.
    """

    name = "stacked"

    def __init__(
        self, task: Task, model: nn.Module, layout: Layout, settings: CohortSettings
    ) -> None:
        self._device = torch.device(settings.device)
        self._model = model = model.to(self._device).train()
        self._layout = layout
        self._memory_bytes = settings.memory_mib << 20
        dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        self._names = [name for name, value in model.named_parameters() if value.requires_grad]
        self._by_hand = Chain.can_take(model)
        self._engine: Engine = (
            Chain(model, task, dtype)
            if self._by_hand
            else Vmapped(model, task, dtype, self._memory_bytes // 4)
        )
        self._activations: dict[Hashable, int] = {}

    def reason_against(
        self,
        model: nn.Module,
        hyper: Hyperparameters,  # noqa: ARG002
        private: bool,
    ) -> str:
        """Say in a few words why this backend cannot train so; empty if it can."""
        if any(_draws(module) for module in model.modules()):
            return "dropout is drawn for one client after another"
        names = {name for name, _ in model.named_parameters()}
        if len(names) < len(list(model.named_parameters(remove_duplicate=False))):
            return "the model shares a parameter between layers"
        if private and any(True for _ in model.buffers()):
            return "a model with buffers is not trained with DP-SGD"
        return "" if self._names else "the model has no parameter that is trained"

    def train(
        self, parent: Vector, members: Sequence[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train all members, private or none of them; outcomes are in their order."""
        outcomes: dict[int, Outcome] = {}
        buckets: dict[Hashable, list[int]] = {}
        for position, member in enumerate(members):
            buckets.setdefault(bucket_key(member, hyper), []).append(position)
        for key, bucket in buckets.items():
            bucket.sort(key=lambda position: -len(members[position].steps))
            width = key[0]  # type: ignore[index]
            size = self._chunk_size(members[bucket[0]], width, hyper)
            for start in range(0, len(bucket), size):
                chosen = bucket[start : start + size]
                found = self._train_chunk(parent, [members[at] for at in chosen], width, hyper)
                outcomes |= dict(zip(chosen, found, strict=True))
        return [outcomes[position] for position in range(len(members))]

    @torch.no_grad()
    def _train_chunk(
        self, parent: Vector, members: list[Batches], width: int, hyper: Hyperparameters
    ) -> list[Outcome]:
        began = time.monotonic()
        self._load_constants(parent)
        chunk = Chunk(members, width, self._device)
        run = ChunkRun(self._engine, chunk, parent, self._layout, self._names, hyper, self._device)
        run.run()
        return _outcomes(chunk, run, began)

    def _load_constants(self, parent: Vector) -> None:
        """Copy what is not trained, frozen weights and buffers, into the model."""
        if len(self._names) < len(self._layout.names):
            state = self._model.state_dict()
            for name, view in self._layout.views(parent).items():
                if name not in self._names:
                    state[name].copy_(torch.tensor(view))

    def _chunk_size(self, member: Batches, width: int, hyper: Hyperparameters) -> int:
        """Return how many clients like this one fit into memory at once."""
        state = {"adam": 2}.get(hyper.optimizer, 1 if hyper.momentum else 0)
        own = (member.correction is not None) + (member.start is not None)
        weights = self._layout.size * (_WEIGHT_COPIES + state + own)
        rows = width * self._activation_size(member) * _ACTIVATION_COPIES
        if member.plan is not None:
            # The noise of a step in float64, and twice in float32; some gradients an example.
            weights += self._layout.size * (4 if self._by_hand else 8)
        data = member.inputs.numel() + member.targets.numel()
        fits = self._memory_bytes // (BYTES_PER_PARAMETER * (weights + rows + data))
        return max(1, min(_MAX_CLIENTS, fits))

    def _activation_size(self, member: Batches) -> int:
        """Return how many numbers one example's pass through the model makes."""
        key = member.inputs.shape[1:]
        if key not in self._activations:
            self._activations[key] = _count_activations(
                self._model, member.inputs[:1].to(self._device)
            )
        return self._activations[key]


def _draws(module: nn.Module) -> bool:
    """Tell whether the module draws random numbers in training."""
    share = getattr(module, "p" if isinstance(module, _DROPOUT) else "dropout", 0.0)
    return isinstance(module, nn.RReLU) or (isinstance(share, float) and share > 0)


def _count_activations(model: nn.Module, example: Tensor) -> int:
    sizes = [example.numel()]

    def count(module: nn.Module, inputs: object, outputs: object) -> None:  # noqa: ARG001
        if isinstance(outputs, Tensor):
            sizes.append(outputs.numel())

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def _outcomes(chunk: Chunk, run: ChunkRun, began: float) -> list[Outcome]:
    """Return each member's result, or what broke its training."""
    deltas = run.deltas()
    rows = deltas.numpy()
    finite = _are_finite(deltas)
    losses = torch.where(chunk.valid, run.losses.cpu().double(), 0.0).sum((0, 2)).tolist()
    counts = chunk.sizes.sum(0).tolist()
    broken = chunk.valid & ~torch.isfinite(run.values.cpu())
    overflows = broken.any(2).any(0).tolist()
    seconds = (time.monotonic() - began) / len(chunk.members)
    outcomes: list[Outcome] = []
    for at, member in enumerate(chunk.members):
        if overflows[at]:
            outcomes.append(_overflow(member, broken[:, at]))
        elif not finite[at]:
            outcomes.append(TaskError(DIVERGED))
        else:
            mean = losses[at] / counts[at] if counts[at] else math.nan
            delta = rows[at]
            outcomes.append(LocalResult(delta, len(member.steps), seconds, mean))
    return outcomes


def _are_finite(deltas: Tensor) -> list[bool]:
    """Tell of each row whether all its numbers are finite."""
    # A sum is not finite where a number is not, and takes a tenth of a maximum's time.
    suspects = ~torch.isfinite(deltas.sum(1))
    if not suspects.any():
        return [True] * len(deltas)
    suspects[suspects.clone()] = ~torch.isfinite(deltas[suspects]).all(1)
    finite: list[bool] = (~suspects).tolist()
    return finite


def _overflow(member: Batches, broken: Tensor) -> TaskError:
    """Return the error of the first row that is not finite; ``[T, W]`` says which are not."""
    step, row = torch.nonzero(broken)[0].tolist()
    what = "loss" if member.plan is None else "gradient"
    return overflow_error(int(member.steps[step][row]), what, step)
