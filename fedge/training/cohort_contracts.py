"""What a cohort trainer and its backends say to each other.

Every draw of a client is made before anything is computed, so that backends may compute in any
order and side by side, and all of them train on the same batches and with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from fedge.config import limited
from fedge.errors import TaskError
from fedge.naming import Registry
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples, Task
from fedge.training.local import LocalResult
from fedge.training.steps import Steps

PRECISIONS = ("float32", "bfloat16")

Outcome = LocalResult | TaskError
"""A client's training, or why that client alone could not be trained."""


@dataclass(frozen=True)
class CohortSettings:
    """How many clients are trained at once.

    Attributes:
        backend: name of a registered backend, or ``auto``: the one that a short measurement on
            this model and machine finds fastest.
        precision: of forward and backward passes; weights, optimisers and noise are float32.
        device: torch device; only ``stacked`` leaves the CPU.
        memory_mib: bound of what one batched call holds, from which the chunk sizes follow.
        cache: folder that keeps measurements between processes; None measures in each.
    """

    backend: str = "auto"
    precision: str = limited("float32", choices=PRECISIONS)
    device: str = "cpu"
    memory_mib: int = limited(256, ge=1)
    cache: Path | None = None


@dataclass(frozen=True, eq=False)
class CohortMember:
    """One client of a cohort, as `LocalTrainer.train` takes it.

    Attributes:
        draws: batches, noise and dropout; consumed as if the client were trained alone.
        plan: None trains without DP.
        correction: SCAFFOLD's server control less this client's; None is zero.
        start: weights that training starts from, and that the delta is relative to; None is the
            cohort's parent.
    """

    examples: Examples
    draws: Draws
    plan: DpPlan | None = None
    correction: Vector | None = None
    start: Vector | None = None


@dataclass(frozen=True, eq=False)
class Batches:
    """One member's data and every draw of its training.

    The tensors may share memory with the member's examples: a backend only reads them.

    Attributes:
        inputs: ``[N, ...]``, finite, N > 0.
        targets: ``[N, ...]``.
        steps: positions of each step's examples, ``[B_t]`` int64; without DP each epoch's steps
            cut one permutation into `batch_size`, under DP they are Poisson batches and may be
            empty.
        seed: of dropout; what torch's generator is seeded with before the first step.
        noise: DP only: standard normals of each step, ``[trained parameters]`` float64 in the
            model's parameter order; the backend scales them.
        correction: ``[layout.size]``, checked: finite, of this layout, only with ``scaffold``.
        start: ``[layout.size]``, checked: finite, of this layout, only without a client term; None
            is the parent.
    """

    inputs: Tensor
    targets: Tensor
    steps: Steps
    seed: int
    noise: list[Tensor] | None = None
    plan: DpPlan | None = None
    correction: Vector | None = None
    start: Vector | None = None


class Backend(Protocol):
    """Trains many clients, each as if it were alone.

    Results are those of `LocalTrainer.train` to 1e-5 in float32. ``LocalResult.seconds`` is the
    client's even share of the call. A client whose training diverges gives a TaskError with
    `LocalTrainer`'s words and harms no other.
    """

    name: str

    def reason_against(self, model: nn.Module, hyper: Hyperparameters, private: bool) -> str:
        """Say in a few words why this backend cannot train so; empty if it can."""
        ...

    def train(
        self, parent: Vector, members: Sequence[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train all members, private or none of them; outcomes are in their order."""
        ...


MakeBackend = Callable[[Task, nn.Module, Layout, CohortSettings], Backend]

BACKENDS: Registry[MakeBackend] = Registry("cohort backend")
"""A backend is given a model of its own, which it may write to, and the model's layout."""
