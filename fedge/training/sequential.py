"""One client after another by `LocalTrainer`: slow, always possible, and what others must equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples, Task
from fedge.training.cohort_contracts import (
    BACKENDS,
    Batches,
    CohortMember,
    CohortSettings,
    Outcome,
)
from fedge.training.local import LocalTrainer


@BACKENDS.register("sequential")
class SequentialBackend:
    """Trains with `LocalTrainer`, in float32 on the CPU whatever the settings say."""

    name = "sequential"

    def __init__(
        self,
        task: Task,
        model: nn.Module | None = None,  # noqa: ARG002
        layout: Layout | None = None,  # noqa: ARG002
        settings: CohortSettings | None = None,  # noqa: ARG002
    ) -> None:
        self._trainer = LocalTrainer(task)

    def reason_against(
        self,
        model: nn.Module,  # noqa: ARG002
        hyper: Hyperparameters,  # noqa: ARG002
        private: bool,  # noqa: ARG002
    ) -> str:
        """There is none: this is how a client trains alone."""
        return ""

    def train(
        self, parent: Vector, members: Sequence[Batches], hyper: Hyperparameters
    ) -> list[Outcome]:
        """Train all members; outcomes are in their order."""
        return [self.train_member(parent, _replay(member, hyper), hyper) for member in members]

    def train_member(self, parent: Vector, member: CohortMember, hyper: Hyperparameters) -> Outcome:
        """Train one member; whatever its task raises is its own error."""
        try:
            return self._trainer.train(
                parent if member.start is None else member.start,
                member.examples,
                hyper,
                draws=member.draws,
                plan=member.plan,
                correction=member.correction,
            )
        except TaskError as error:
            return error
        except Exception as error:  # the task is the user's, and others are still to be trained
            return TaskError(f"training failed: {type(error).__name__}: {error}")


@dataclass(frozen=True, kw_only=True)
class _ReplayedDraws(Draws):
    """Draws that were made already."""

    first_seed: int
    epochs: Iterator[Tensor]
    batches: Iterator[Tensor]
    noise: Iterator[Tensor]

    def seed(self) -> int:
        return self.first_seed

    def permutation(self, size: int) -> Tensor:  # noqa: ARG002
        return next(self.epochs)

    def poisson_batch(self, num_examples: int, sampling_rate: float) -> Tensor:  # noqa: ARG002
        return next(self.batches)

    def normal(self, size: int) -> Tensor:  # noqa: ARG002
        return next(self.noise)


def _replay(member: Batches, hyper: Hyperparameters) -> CohortMember:
    """Return the member as `LocalTrainer` takes it, with the draws that it has made."""
    per_epoch = max(1, len(member.steps) // hyper.local_epochs)
    draws = _ReplayedDraws(
        uniform=_nothing_left,
        private=False,
        first_seed=member.seed,
        epochs=(
            torch.cat(list(member.steps[start : start + per_epoch]))
            for start in range(0, len(member.steps), per_epoch)
        ),
        batches=iter(member.steps),
        noise=iter(member.noise or ()),
    )
    examples = Examples(member.inputs.numpy(), member.targets.numpy())
    return CohortMember(examples, draws, member.plan, member.correction, member.start)


def _nothing_left(size: int) -> Tensor:
    raise AssertionError(f"{size} more uniforms were asked for than were drawn")
