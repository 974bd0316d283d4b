"""What the devices say of a refinement: federated evaluation as the second voice beside the gate.

The gate set can be as one-sided as the proxy data; the devices' holdouts are what the model is for.
The first refinement that the gate accepts, and after it one in each round of federated evaluation,
is measured by the devices beside the aggregate. Where they lose by it, the aggregate stands and
refinement rests until the next such round, when one more is put to them. Each device is believed:
false reports can stop refinement or let through what the gate accepted, and no more than that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fedge.params import Vector
from server.settings import EvaluateConfig

METRIC = "loss"

Ask = Callable[[Vector], dict[str, Any]]
"""Lets devices evaluate weights; what ``metrics.jsonl`` holds of it."""

Consent = Literal["unasked", "given", "refused"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What the devices measured of aggregate and refinement.

    Attributes:
        refused: they lose by the refinement.
        report: mean losses and margin, for ``metrics.jsonl``.
        evaluation: of the weights that stand.
    """

    refused: bool
    report: dict[str, Any]
    evaluation: dict[str, Any] | None


class DeviceVoice:
    """Remembers whether the devices agree to be refined.

    Args:
        margin: their mean loss may rise by this much.

    Attributes:
        consent: as of the last verdict.
    """

    def __init__(self, evaluate: EvaluateConfig, margin: float) -> None:
        self._evaluate = evaluate
        self._margin = margin
        self.consent: Consent = "unasked"

    def allows(self, round: int) -> bool:
        """Tell whether a refinement may be tried: always, but after a refusal only to be judged."""
        return self.consent != "refused" or self.is_heard(round)

    def is_heard(self, round: int) -> bool:
        """Tell whether an accepted refinement of a round is put to the devices."""
        if self.consent == "unasked":
            return self._evaluate.every_rounds > 0
        return is_due(self._evaluate, round)

    def judge(self, round: int, aggregate: Vector, refined: Vector, ask: Ask) -> Verdict:
        """Let devices measure both; without an answer for both nothing is decided."""
        after, before = ask(refined), ask(aggregate)
        losses = [each.get(METRIC) for each in (before, after)]
        report = {"loss_aggregate": losses[0], "loss_refined": losses[1], "margin": self._margin}
        if losses[0] is None or losses[1] is None:
            return Verdict(False, report, after)
        refused = not losses[1] - losses[0] <= self._margin  # what is not a number is refused
        self.consent = "refused" if refused else "given"
        if refused:
            log.info(
                "round %d: on the devices the refinement's loss is %.4g, the aggregate's %.4g: the "
                "aggregate stands, and refinement rests until they are asked again",
                round,
                losses[1],
                losses[0],
            )
        return Verdict(refused, report, before if refused else after)


def is_due(evaluate: EvaluateConfig, round: int) -> bool:
    """Tell whether federated evaluation is due in a round."""
    return evaluate.every_rounds > 0 and round % evaluate.every_rounds == 0
