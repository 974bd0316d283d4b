"""What the daemon and its training process say, as frame headers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.settings import EdgeConfig, StoreConfig, TrainingProcessConfig
from edge_client.worker import Ask, Proposal
from fedge.config import build
from fedge.errors import (
    BudgetExhausted,
    ConfigError,
    FedgeError,
    OutOfMemory,
    PrivacyError,
    TaskError,
    TrainingPaused,
    TransportError,
)
from fedge.params import Vector
from fedge.privacy.accounting import Spend
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters, PrivacyConfig, TaskConfig

_KINDS: dict[str, type[FedgeError]] = {
    "config": ConfigError,
    "task": TaskError,
    "privacy": PrivacyError,
    "paused": TrainingPaused,
    "memory": OutOfMemory,
    "failed": TransportError,
}


@dataclass(frozen=True)
class ProcessSettings:
    """Everything the training process needs to know.

    Attributes:
        steps_path: file that keeps the steps of the round under way; None keeps none.
    """

    samples_path: Path
    task: TaskConfig = field(default_factory=TaskConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    training: TrainingProcessConfig = field(default_factory=TrainingProcessConfig)
    steps_path: Path | None = None

    @staticmethod
    def of(config: EdgeConfig) -> ProcessSettings:
        """Return the part of a device's configuration that concerns training."""
        return ProcessSettings(
            config.samples_path, config.task, config.store, config.training, config.steps_path
        )


def ask_to_json(ask: Ask) -> dict[str, Any]:
    """Return an ask as JSON values."""
    return asdict(ask)


def ask_from_json(data: dict[str, Any]) -> Ask:
    """Read what `ask_to_json` wrote."""
    return Ask(
        **{
            **data,
            "hyper": build(Hyperparameters, data["hyper"]),
            "privacy": PrivacyConfig(**data["privacy"]),
            "spent": tuple(Spend(**spend) for spend in data["spent"]),
        }
    )


def proposal_from_json(data: dict[str, Any]) -> Proposal:
    """Read ``dataclasses.asdict`` of a proposal."""
    return Proposal(**{**data, "plan": plan_from_json(data["plan"])})


def plan_from_json(data: dict[str, Any] | None) -> DpPlan | None:
    """Read ``dataclasses.asdict`` of a plan, or None."""
    return None if data is None else DpPlan(**data)


def vectors_to_payload(*vectors: Vector) -> memoryview:
    """Return vectors of one length as one payload; a single one is not copied."""
    whole = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
    return np.ascontiguousarray(whole, np.float32).data.cast("B")


def vectors_from_payload(payload: bytearray, number: int) -> list[Vector]:
    """Return that many vectors of one length, as views of the payload."""
    return np.split(np.frombuffer(payload, np.float32), number)


def error_to_json(error: FedgeError) -> dict[str, Any]:
    """Return an error so that the other side can raise it again."""
    if isinstance(error, BudgetExhausted):
        return {
            "kind": "budget",
            "spent": error.spent,
            "needed": error.needed,
            "budget": error.budget,
        }
    kinds = [kind for kind, cls in _KINDS.items() if isinstance(error, cls)]
    return {"kind": kinds[0] if kinds else "failed", "text": str(error)}


def error_from_json(data: dict[str, Any]) -> FedgeError:
    """Return the error that the other side met."""
    if data["kind"] == "budget":
        return BudgetExhausted(spent=data["spent"], needed=data["needed"], budget=data["budget"])
    return _KINDS[data["kind"]](data["text"])
