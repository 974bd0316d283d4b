"""How good a model is: on the cloud's own shares, and on the devices' holdouts."""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import numpy as np
from flwr.app import Message

from fedge.errors import UpdateRejected
from fedge.messages import Evaluation, Refusal, decode_evaluation
from fedge.params import Vector
from fedge.task import CloudData
from fedge.training.local import LocalTrainer
from server.round_intake import error_reason

log = logging.getLogger(__name__)

WORST_FRACTION = 0.1


class CentralEvaluation:
    """Evaluation on the gate and test sets, which never leave the server."""

    def __init__(self, trainer: LocalTrainer, data: CloudData) -> None:
        self._trainer = trainer
        self._shares = {"test": data.test, "gate": data.gate}

    def evaluate(self, weights: Vector) -> dict[str, float]:
        """Return each metric of each share, named ``loss_test``, ``accuracy_gate`` and so on."""
        return {
            f"{name}_{share}": value
            for share, examples in self._shares.items()
            for name, value in self._trainer.evaluate(weights, examples).items()
        }

    def evaluate_test(self, weights: Vector) -> dict[str, float]:
        """Return the metrics of the test set alone, by plain name."""
        return self._trainer.evaluate(weights, self._shares["test"])


class FederatedEvaluation:
    """One round's evaluate replies, as they come.

    Args:
        max_examples: example weight above which a reply is refused.
    """

    def __init__(self, max_examples: float) -> None:
        self.refused: Counter[str] = Counter()
        self._max_examples = max_examples
        self._evaluations: list[Evaluation] = []

    def take(self, message: Message) -> None:
        """Add a reply, or count why not."""
        if message.has_error():
            self.refused[error_reason(message.error)] += 1
            return
        try:
            evaluation = decode_evaluation(message.content)
        except UpdateRejected as error:
            self.refused[error.reason] += 1
            return
        self.add(evaluation)

    def add(self, evaluation: Evaluation | Refusal) -> None:
        """Add what a device measured, or count why not."""
        if isinstance(evaluation, Refusal):
            self.refused[evaluation.reason[:40]] += 1
        elif not 0 < evaluation.num_examples <= self._max_examples:
            self.refused["examples"] += 1
        else:
            self._evaluations.append(evaluation)

    def metrics(self) -> dict[str, float]:
        """Return the weighted mean of each metric; empty where nobody answered.

        ``accuracy_worst_tenth`` is the plain mean over the tenth of clients (at least one) with
        the lowest accuracy.
        """
        names = sorted({name for each in self._evaluations for name in each.metrics})
        result = {name: self._mean(name) for name in names}
        accuracies = sorted(
            each.metrics["accuracy"] for each in self._evaluations if "accuracy" in each.metrics
        )
        if accuracies:
            num_worst = max(1, math.ceil(WORST_FRACTION * len(accuracies) - 1e-9))
            result["accuracy_worst_tenth"] = float(np.mean(accuracies[:num_worst]))
        return result

    def summary(self, num_asked: int) -> dict[str, Any]:
        """Return what ``metrics.jsonl`` holds of it."""
        return {
            "num_asked": num_asked,
            "num_clients": len(self._evaluations),
            "num_examples": sum(each.num_examples for each in self._evaluations),
            "refused": dict(self.refused),
            **self.metrics(),
            "accuracy_deciles": self._deciles(),
        }

    def _deciles(self) -> list[float] | None:
        """Return the least, every tenth and the largest accuracy of the devices."""
        accuracies = [e.metrics["accuracy"] for e in self._evaluations if "accuracy" in e.metrics]
        if not accuracies:
            return None
        deciles: list[float] = np.quantile(accuracies, np.linspace(0, 1, 11)).tolist()
        return deciles

    def _mean(self, name: str) -> float:
        those = [each for each in self._evaluations if name in each.metrics]
        weights = [each.num_examples for each in those]
        return float(np.average([each.metrics[name] for each in those], weights=weights))
