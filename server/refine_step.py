"""The refinement of one round's aggregate, taken only if the gate set says it is no worse."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fedge.errors import RefineError, UpdateRejected
from fedge.params import Layout, Vector
from server.refine import Refiner
from server.refinement_gate import RefinementGate
from server.settings import RefineConfig
from server.trainer.spec import Refinement

log = logging.getLogger(__name__)

Status = Literal["accepted", "rejected", "failed", "off"]


@dataclass(frozen=True)
class Refined:
    """The weights to go on with, and how they came about.

    Attributes:
        status: ``off`` where no refinement was due.
        detail: losses, steps and reasons, for ``metrics.jsonl``.
    """

    weights: Vector
    status: Status = "off"
    detail: dict[str, Any] = field(default_factory=dict)


class RefineStep:
    """Asks the cloud trainer and decides; whatever goes wrong, the aggregate stands."""

    def __init__(
        self, config: RefineConfig, layout: Layout, refiner: Refiner, gate: RefinementGate
    ) -> None:
        self._config = config
        self._layout = layout
        self._refiner = refiner
        self._gate = gate

    def apply(self, round: int, aggregate: Vector) -> Refined:
        """Return the refined weights if they are due and good, else the aggregate."""
        if round % self._config.every_rounds:
            return Refined(aggregate)
        try:
            refinement = self._refiner.refine(
                aggregate, round=round, deadline_s=self._config.deadline_s
            )
            refined = self._layout.check(refinement.weights)
        except (RefineError, UpdateRejected) as error:
            log.warning("round %d: refinement failed, the aggregate stands: %s", round, error)
            return Refined(aggregate, "failed", {"reason": str(error)})
        decision = self._gate.decide(aggregate, refined)
        detail = {**_report(refinement), **asdict(decision)}
        del detail["accepted"]
        if not decision.accepted:
            log.info("round %d: refinement rejected: %s", round, decision.reason)
            return Refined(aggregate, "rejected", detail)
        return Refined(refined, "accepted", detail)


def _report(refinement: Refinement) -> dict[str, Any]:
    return {
        "num_steps": refinement.num_steps,
        "seconds": refinement.seconds,
        "loss_first": refinement.loss_first,
        "loss_last": refinement.loss_last,
    }
