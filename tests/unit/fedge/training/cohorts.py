"""Small tasks and cohorts for the tests of cohort training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.tasks.digits import Digits
from fedge.training.cohort_contracts import CohortMember, Outcome
from fedge.training.local import LocalResult, LocalTrainer

NUM_INPUTS, NUM_CLASSES = 12, 5


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def mixed() -> nn.Module:
    """A chain with all that a chain may have: shapes, no bias, smooth layers."""
    return nn.Sequential(
        nn.Unflatten(1, (3, 4)),
        nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(18, 7, bias=False),
        nn.Tanh(),
        nn.GELU(),
        nn.Linear(7, 5),
        nn.ELU(),
    )


class Written(nn.Module):
    """A chain in the user's own words."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.outer(torch.relu(self.inner(inputs.flatten(1))))
        return outputs


def normed() -> nn.Module:
    """Layers that only vmap can stack."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)),
        nn.Conv1d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(48),
        nn.Linear(48, 5),
    )


class Recurrent(nn.Module):
    """A model that vmap cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 6, batch_first=True)
        self.last = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        states, _ = self.cell(inputs.view(-1, 3, 4))
        outputs: Tensor = self.last(states[:, -1])
        return outputs


@dataclass(frozen=True)
class Toy(Digits):
    """Random examples of 12 numbers in 5 classes, and any model over them."""

    model: Callable[[], nn.Module] = mlp

    def build_model(self) -> nn.Module:
        return self.model()


def examples(size: int, seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(size, NUM_INPUTS)).astype(np.float32)
    return Examples(inputs, random.integers(0, NUM_CLASSES, size))


def cohort(
    sizes: Sequence[int],
    plans: Sequence[DpPlan | None] | None = None,
    corrections: Sequence[Vector | None] | None = None,
) -> list[CohortMember]:
    """Return members of these sizes; made again it draws the same."""
    return [
        CohortMember(
            examples(size, seed),
            Draws.seeded(100 + seed),
            plans[seed] if plans else None,
            corrections[seed] if corrections else None,
        )
        for seed, size in enumerate(sizes)
    ]


def alone(
    trainer: LocalTrainer, parent: Vector, members: list[CohortMember], hyper: Hyperparameters
) -> list[Outcome]:
    """Train each member by `LocalTrainer`."""
    outcomes: list[Outcome] = []
    for member in members:
        try:
            outcomes.append(
                trainer.train(
                    parent,
                    member.examples,
                    hyper,
                    draws=member.draws,
                    plan=member.plan,
                    correction=member.correction,
                )
            )
        except TaskError as error:
            outcomes.append(error)
    return outcomes


def assert_equal(found: list[Outcome], expected: list[Outcome], tolerance: float = 1e-5) -> None:
    """Check deltas, steps and losses, and the words of errors."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, TaskError):
            assert isinstance(one, TaskError)
            assert str(one) == str(other)
            continue
        assert isinstance(one, LocalResult), one
        np.testing.assert_allclose(one.delta, other.delta, atol=tolerance, rtol=0)
        assert one.delta.dtype == np.float32
        assert one.num_steps == other.num_steps
        np.testing.assert_allclose(one.loss, other.loss, atol=10 * tolerance)


def random_corrections(layout: Layout, count: int) -> list[Vector | None]:
    """Return corrections, every third of them missing."""
    random = np.random.default_rng(3)
    rows = random.normal(size=(count, layout.size), scale=0.05).astype(np.float32)
    return [None if at % 3 == 2 else rows[at] for at in range(count)]


def plan(size: int, *, clip_norm: float = 0.5, num_steps: int = 5, rate: float = 0.3) -> DpPlan:
    """Return a plan with little enough noise for gradients to matter."""
    return DpPlan(0.4, rate, num_steps, clip_norm, 1e-5, float(max(1, size)))


torch.set_num_threads(1)
