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
        augmentation: name in `server.trainer.augmentations.AUGMENTATIONS`.
        optimizer: name in `server.trainer.optimizers.OPTIMIZERS`.
        momentum: of ``sgd``.
        max_grad_norm: gradients of a larger norm, over the whole model, are scaled down to this; 0
            leaves them.
        batch_size: examples a step, over all ranks; more than there are takes all of them.
        budget_s: seconds after which a refinement ends well with the steps it has, at least one;
            0 takes all steps, and only then do equal specs give equal weights.
        deadline_s: seconds after which a refinement that is still running fails.
        seed, round: name the random streams of batches and dropout.
        held_out: fraction of the proxy data that is never trained on; see `split_proxy`.
        mu: how strongly ``anchored`` pulls back to the given weights.
        distill_weight, temperature: of ``distill``, beside the task's own loss.
        max_turn_deg, max_zoom, max_shift: of ``affine``: degrees, share of the size and share of
            the side, in either direction.
    """

    objective: str = "fine-tune"
    augmentation: str = "none"
    optimizer: str = "sgd"
    learning_rate: float = limited(0.02, gt=0)
    momentum: float = limited(0.9, ge=0, lt=1)
    weight_decay: float = limited(0.0, ge=0)
    max_grad_norm: float = limited(0.0, ge=0)
    batch_size: int = limited(16, ge=1)
    steps: int = limited(10, ge=1)
    budget_s: float = limited(0.0, ge=0)
    deadline_s: float = limited(30.0, gt=0)
    seed: int = limited(0, ge=0)
    round: int = limited(0, ge=0)
    held_out: float = limited(0.0, ge=0, lt=1)
    mu: float = limited(0.1, ge=0)
    distill_weight: float = limited(1.0, ge=0)
    temperature: float = limited(2.0, gt=0)
    max_turn_deg: float = limited(10.0, ge=0, le=180)
    max_zoom: float = limited(0.1, ge=0, lt=1)
    max_shift: float = limited(0.1, ge=0, le=1)


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


class Cancelled(RefineError):
    """A refinement that its caller, or one of the processes, did not want to go on."""


class CutShort(RefineError):
    """A refinement that ended for no fault of its own, and goes on when it is asked for again."""
