"""The refinement of one round's aggregate, taken only if gate set and devices agree."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedge.errors import RefineError, UpdateRejected
from fedge.params import Vector
from server.device_voice import Ask, DeviceVoice
from server.refinement_gate import RefinementGate
from server.refinement_modes import Mode, Proposal

log = logging.getLogger(__name__)

Status = Literal["accepted", "rejected", "failed", "off"]


@dataclass(frozen=True)
class Refined:
    """The weights to go on with, and how they came about.

    Attributes:
        status: ``off`` where no refinement was due, or none was done yet.
        detail: losses, steps and reasons, for ``metrics.jsonl``.
    """

    weights: Vector
    status: Status = "off"
    detail: dict[str, Any] = field(default_factory=dict)


Concluded = tuple[Refined, dict[str, Any] | None]
"""The weights to commit, and the devices' evaluation of them if there was any."""


class RefineStep:
    """Asks the cloud trainer and decides; whatever goes wrong, the aggregate stands.

    Args:
        mode: when refinements run.
        gate: what chooses how much of one is proposed, and judges it.
        voice: what the devices say of those that the gate accepts.
        last_round: after which nothing more is begun.
    """

    def __init__(
        self, mode: Mode, gate: RefinementGate, voice: DeviceVoice, last_round: int
    ) -> None:
        self._mode = mode
        self._gate = gate
        self._voice = voice
        self._last_round = last_round

    def apply(self, round: int, aggregate: Vector) -> Refined:
        """Return the refined weights if they are due and the gate accepts, else the aggregate."""
        if not self._mode.serves(round):
            return Refined(aggregate)
        if not self._voice.allows(round):
            return Refined(aggregate, detail={"reason": "rests: the devices lost by the last one"})
        try:
            proposal = self._mode.take(round, aggregate)
        except (RefineError, UpdateRejected) as error:
            log.warning("round %d: refinement failed, the aggregate stands: %s", round, error)
            return Refined(aggregate, "failed", {"reason": str(error)})
        if proposal is None:
            return Refined(aggregate, detail={"reason": "is still under way"})
        decision = self._gate.decide(aggregate, proposal.weights)
        detail = {**_report(proposal), **decision.report()}
        if not decision.accepted:
            log.info("round %d: refinement rejected: %s", round, decision.reason)
            return Refined(aggregate, "rejected", detail)
        return Refined(decision.weights, "accepted", detail)

    def conclude(
        self, round: int, aggregate: Vector, refined: Refined, ask: Ask, is_due: bool
    ) -> Concluded:
        """Hear the devices, and begin what the next round may take.

        Args:
            round: which is about to be committed.
            aggregate: weights before refinement.
            refined: what `apply` returned.
            ask: lets devices evaluate weights.
            is_due: whether they evaluate in this round anyway.
        """
        evaluation = None
        if refined.status == "accepted" and self._voice.is_heard(round):
            verdict = self._voice.judge(round, aggregate, refined.weights, ask)
            evaluation = verdict.evaluation
            refined = replace(refined, detail={**refined.detail, "devices": verdict.report})
            if verdict.refused:
                refined = Refined(aggregate, "rejected", refined.detail)
                self._mode.drop()
        elif is_due:
            evaluation = ask(refined.weights)
        if self._voice.consent != "unasked":
            refined = replace(refined, detail={**refined.detail, "consent": self._voice.consent})
        self._begin(round, refined.weights)
        return refined, evaluation

    def resume(self, round: int, weights: Vector, metrics: Mapping[str, Any]) -> None:
        """Go on after a round that an earlier process committed, with its line of metrics."""
        detail = metrics.get("refinement_detail") or {}
        self._voice.consent = detail.get("consent", "unasked")
        if self._begin(round, weights):
            log.info("a refinement after round %d was lost with its process: begun again", round)

    def _begin(self, round: int, weights: Vector) -> bool:
        """Start what the next round may take, unless it could not be used then."""
        if round >= self._last_round or not self._voice.allows(round + 1):
            return False
        return self._mode.begin(round, weights)


def _report(proposal: Proposal) -> dict[str, Any]:
    refinement = proposal.refinement
    return {
        "staleness": proposal.staleness,
        "num_steps": refinement.num_steps,
        "seconds": refinement.seconds,
        "loss_first": refinement.loss_first,
        "loss_last": refinement.loss_last,
    }
