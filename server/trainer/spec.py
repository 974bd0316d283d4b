"""What a refinement is asked for and what it gives back; knows neither torch nor gRPC."""

from __future__ import annotations

from dataclasses import dataclass

from fedge.config import limited
from fedge.errors import RefineError
from fedge.params import Vector


@dataclass(frozen=True)
class RefineSpec:
    """How weights are refined; equal specs turn equal weights into equal weights.

    Attributes:
        objective: name in `server.trainer.objectives.OBJECTIVES`.
        batch_size: examples a step, over all ranks; more than there are takes all of them.
        deadline_s: seconds after which a refinement that is still running fails.
        seed, round: name the random streams of batches and dropout.
    """

    objective: str = "fine-tune"
    learning_rate: float = limited(0.02, gt=0)
    momentum: float = limited(0.9, ge=0, lt=1)
    batch_size: int = limited(16, ge=1)
    steps: int = limited(10, ge=1)
    deadline_s: float = limited(30.0, gt=0)
    seed: int = limited(0, ge=0)
    round: int = limited(0, ge=0)


@dataclass(frozen=True)
class Refinement:
    """Refined weights and how they came about.

    Attributes:
        loss_first, loss_last: mean loss of the first batch before any step and of the last
            batch before the last step.
    """

    weights: Vector
    num_steps: int
    seconds: float
    loss_first: float
    loss_last: float


class Diverged(RefineError):
    """A refinement whose loss or weights are no longer finite."""
