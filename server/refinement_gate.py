"""Decides how much of a refinement is proposed, and whether that is kept: example by example.

Proxy examples that no refinement trained on choose between blends of aggregate and refinement; the
gate set is then asked once, about the chosen one. So its answer is not the best of several, and
its bound holds for each round as it is stated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from fedge.errors import TaskError
from fedge.params import Vector
from fedge.task import CloudData, Examples
from server.settings import RefineConfig
from server.trainer.proxy_split import split_proxy

CONFIDENCE = 0.95

Values = npt.NDArray[np.float64]


class Losses(Protocol):
    """What the gate needs of `fedge.training.local.LocalTrainer`."""

    def losses(self, weights: Vector, examples: Examples, /) -> Values:
        """Return one loss an example, ``[N]``."""
        ...


@dataclass(frozen=True)
class GateDecision:
    """Whether a blend of the refinement replaces the aggregate, and why.

    Attributes:
        weights: the chosen blend.
        blend: its share of the refinement; 0 is the aggregate, NaN is unknown.
        blend_losses: mean loss of each blend on held-out proxy data; empty with one to choose.
        loss_aggregate, loss_refined: mean losses on the gate set, of the aggregate and the blend;
            NaN where it was not asked.
        change, bound: mean of the paired differences, and its one-sided 95 % upper bound.
    """

    accepted: bool
    weights: Vector
    reason: str
    blend: float = math.nan
    blend_losses: dict[float, float] = field(default_factory=dict)
    loss_aggregate: float = math.nan
    loss_refined: float = math.nan
    change: float = math.nan
    bound: float = math.nan

    def report(self) -> dict[str, Any]:
        """Return the numbers and the reason, for ``metrics.jsonl``."""
        return {
            "blend": self.blend,
            "blend_losses": {f"{share:g}": loss for share, loss in self.blend_losses.items()},
            "loss_aggregate": self.loss_aggregate,
            "loss_refined": self.loss_refined,
            "change": self.change,
            "bound": self.bound,
            "reason": self.reason,
        }


class RefinementGate:
    """Accepts a blend whose gate loss rises by no more than a margin, with 95 % confidence.

    A blend that seems better, but not by enough to be sure, passes if what it may cost at worst
    lies within the margin; with a margin of 0 only what is surely no worse passes.

    Args:
        trainer: what computes losses.
        data: of the cloud; of the proxy data the held-out part is used alone.
        config: margin and blends.
        seed: of the run, which draws the held-out part.

    Raises:
        TaskError: the gate set has fewer than two examples.
        RefineError: too few proxy examples to hold any out.
    """

    def __init__(self, trainer: Losses, data: CloudData, config: RefineConfig, seed: int) -> None:
        if len(data.gate) < 2:
            raise TaskError(
                f"the task's gate set has {len(data.gate)} examples: no refinement could be judged"
            )
        self._trainer = trainer
        self._gate = data.gate
        self._margin = config.margin
        self._blends = tuple(sorted({0.0, *config.blends}))
        self._has_choice = len(config.blends) > 1
        _, self._held_out = split_proxy(data.proxy, seed, config.held_out)

    def decide(self, aggregate: Vector, refined: Vector) -> GateDecision:
        """Choose a blend and judge it; what is not finite is never accepted."""
        if not np.isfinite(refined).all():
            return GateDecision(False, aggregate, "the refined weights are not finite")
        losses = self._blend_losses(aggregate, refined)
        share = _least(losses) if losses else self._blends[-1]
        if share == 0:
            reason = "held-out proxy data prefer the aggregate to every blend"
            return GateDecision(False, aggregate, reason, 0.0, losses)
        blended = blend(aggregate, refined, share)
        before = self._trainer.losses(aggregate, self._gate)
        after = self._trainer.losses(blended, self._gate)
        change, bound = upper_bound(after - before)
        means = float(np.mean(before)), float(np.mean(after))
        for which, values in (("a refined", after), ("an aggregate", before)):
            if not np.isfinite(values).all():
                reason = f"{which} gate loss is not finite"
                return GateDecision(False, blended, reason, share, losses, *means)
        accepted = bound <= self._margin
        reason = (
            f"gate loss changed by {change:+.4g}, at most {bound:+.4g} with 95 % confidence, over "
            f"{len(before)} examples: {'within' if accepted else 'beyond'} the margin of "
            f"{self._margin:g}"
        )
        return GateDecision(accepted, blended, reason, share, losses, *means, change, bound)

    def _blend_losses(self, aggregate: Vector, refined: Vector) -> dict[float, float]:
        if not self._has_choice:
            return {}
        return {
            share: float(
                np.mean(self._trainer.losses(blend(aggregate, refined, share), self._held_out))
            )
            for share in self._blends
        }


def blend(aggregate: Vector, refined: Vector, share: float) -> Vector:
    """Return the weights between the aggregate (0) and the refinement (1)."""
    if share in (0, 1):
        return refined if share else aggregate
    between: Vector = aggregate + np.float32(share) * (refined - aggregate)
    return between


def upper_bound(differences: Values) -> tuple[float, float]:
    """Return the mean of at least two differences and its one-sided 95 % upper bound by t."""
    count = len(differences)
    with np.errstate(invalid="ignore"):  # what is not finite is looked for afterwards
        mean = float(np.mean(differences))
        error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    return mean, mean + float(stdtrit(count - 1, CONFIDENCE)) * error


def _least(losses: dict[float, float]) -> float:
    """Return the share with the least loss, of equals the least; one that is not finite never."""
    return min(losses, key=lambda share: (not math.isfinite(losses[share]), losses[share], share))
