"""Decides whether a refinement is kept: on the gate set, example by example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError, TaskError
from fedge.params import Vector
from fedge.task import Examples


class Losses(Protocol):
    """What the gate needs of `fedge.training.local.LocalTrainer`."""

    def losses(self, weights: Vector, examples: Examples, /) -> npt.NDArray[np.float64]:
        """Return one loss an example, ``[N]``."""
        ...


@dataclass(frozen=True)
class GateDecision:
    """Whether the refined weights replace the aggregate, and why.

    Attributes:
        loss_aggregate, loss_refined: mean losses on the gate set.
    """

    accepted: bool
    loss_aggregate: float
    loss_refined: float
    reason: str


class RefinementGate:
    """Accepts refined weights whose mean loss is no worse than the aggregate's plus a tolerance.

    Both are measured on the same examples; the standard error of the paired difference is part
    of the reason, so that a decision within the noise can be seen to be one.

    Raises:
        TaskError: the gate set is empty.
        ConfigError: the tolerance is negative or not finite.
    """

    def __init__(self, trainer: Losses, gate: Examples, tolerance: float) -> None:
        if len(gate) == 0:
            raise TaskError("the task's gate set is empty: no refinement could be judged")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise ConfigError(f"must be >= 0, got {tolerance}", key="refine.tolerance")
        self._trainer = trainer
        self._gate = gate
        self._tolerance = tolerance

    def decide(self, aggregate: Vector, refined: Vector) -> GateDecision:
        """Compare both on the gate set; what is not finite is never accepted."""
        if not np.isfinite(refined).all():
            return GateDecision(False, math.nan, math.nan, "the refined weights are not finite")
        before = self._trainer.losses(aggregate, self._gate)
        after = self._trainer.losses(refined, self._gate)
        loss_aggregate, loss_refined = float(np.mean(before)), float(np.mean(after))
        if not np.isfinite(after).all():
            return GateDecision(
                False, loss_aggregate, loss_refined, "a refined gate loss is not finite"
            )
        if not np.isfinite(before).all():
            return GateDecision(
                False, loss_aggregate, loss_refined, "an aggregate gate loss is not finite"
            )
        change = after - before
        mean = float(np.mean(change))
        accepted = mean <= self._tolerance
        return GateDecision(accepted, loss_aggregate, loss_refined, self._reason(change, accepted))

    def _reason(self, change: npt.NDArray[np.float64], accepted: bool) -> str:
        spread = float(np.std(change, ddof=1)) if len(change) > 1 else math.inf
        return (
            f"gate loss changed by {np.mean(change):+.4g} ± {spread / math.sqrt(len(change)):.2g} "
            f"over {len(change)} examples, {'within' if accepted else 'beyond'} the tolerance of "
            f"{self._tolerance:g}"
        )
