"""The end of a round: evaluate, commit as one step, and say so in metrics and events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fedge.params import Vector
from server.central_privacy import epsilon_central
from server.checkpoint import Checkpoint, CheckpointStore
from server.evaluation import CentralEvaluation
from server.events import EventLog, MetricsLog, jsonable
from server.refine_step import Refined

log = logging.getLogger(__name__)

_IN_EVENT = ("num_selected", "num_accepted", "num_late", "refused", "refinement", "accuracy_test")


@dataclass(frozen=True)
class TrainingReport:
    """What the training part of a round came to.

    Attributes:
        started_at: monotonic seconds.
        num_stale: accepted updates that were late for an earlier round.
        cost: what the encoding of updates cost, by metric.
        refused: replies that were not added, and messages not sent, by reason.
        applied: False where too few updates came: the model is unchanged.
        extra: figures that a simulation adds, by metric.
    """

    num_selected: int = 0
    num_accepted: int = 0
    num_late: int = 0
    num_stale: int = 0
    cost: dict[str, float | None] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    started_at: float = field(default_factory=time.monotonic)
    applied: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


class RoundCommit:
    """Commits rounds to the run folder; the only writer of checkpoints and metrics.

    Args:
        on_commit: told each round's line of metrics once it is committed.
    """

    def __init__(
        self,
        store: CheckpointStore,
        metrics: MetricsLog,
        events: EventLog,
        central: CentralEvaluation,
        on_commit: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._events = events
        self._central = central
        self._on_commit = on_commit

    def commit(
        self,
        state: Checkpoint,
        training: TrainingReport,
        aggregate: Vector,
        refined: Refined,
        evaluation: dict[str, Any] | None,
    ) -> Checkpoint:
        """Commit the state and return it with its line of metrics.

        Args:
            state: round and weights as they are to be committed.
            training: report of the training part.
            aggregate: weights before refinement.
            refined: how refinement went.
            evaluation: summary of the devices' evaluation; None where there was none.

        Raises:
            CheckpointError: it cannot be written; the last round stands.
        """
        metrics = self._metrics_of(state, training, aggregate, refined, evaluation)
        committed = replace(state, metrics=jsonable(metrics))
        self._store.commit(committed)
        self._metrics.append(committed.metrics)
        self._events.append(
            "round-committed",
            round=state.round,
            **{name: committed.metrics[name] for name in _IN_EVENT},
        )
        _log_round(committed.metrics)
        if self._on_commit is not None:
            self._on_commit(committed.metrics)
        return committed

    def _metrics_of(
        self,
        state: Checkpoint,
        training: TrainingReport,
        aggregate: Vector,
        refined: Refined,
        evaluation: dict[str, Any] | None,
    ) -> dict[str, Any]:
        central = self._central.evaluate(state.weights)
        accuracy = central.get("accuracy_test")
        if refined.status == "accepted":
            accuracy = self._central.evaluate_test(aggregate).get("accuracy")
        return {
            "round": state.round,
            "committed_at": time.time(),
            "num_selected": training.num_selected,
            "num_accepted": training.num_accepted,
            "num_late": training.num_late,
            "num_stale": training.num_stale,
            **training.cost,
            "refused": training.refused,
            "applied": training.applied,
            "round_s": time.monotonic() - training.started_at,
            "accuracy_test": None,
            "accuracy_gate": None,
            **central,
            "accuracy_test_aggregate": accuracy,
            "refinement": refined.status,
            "refinement_detail": refined.detail or None,
            "epsilon": state.epsilon,
            "epsilon_central": epsilon_central(state.memory),
            "evaluation": evaluation,
            "model_digest": state.digest,
            **training.extra,
        }


def _log_round(metrics: dict[str, Any]) -> None:
    accuracy = metrics["accuracy_test"]
    log.info(
        "round %d committed: %d of %d updates, %d late, refused %s, refinement %s, accuracy %s",
        metrics["round"],
        metrics["num_accepted"],
        metrics["num_selected"],
        metrics["num_late"],
        metrics["refused"] or "none",
        metrics["refinement"],
        "-" if accuracy is None else f"{accuracy:.4f}",
    )
