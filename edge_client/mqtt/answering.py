"""From samples and windows to predictions that wait in the outbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_client.mqtt.outbox import Answer, Outbox
from edge_client.mqtt.predictor import Predictor, Question


class Answering:
    """Answers, and keeps the answers until they are sent.

    Args:
        predictor: answers one.
        outbox: where predictions wait.
        sent: called when there are new ones.
    """

    def __init__(self, predictor: Predictor, outbox: Outbox, sent: Callable[[], None]) -> None:
        self._predictor = predictor
        self._outbox = outbox
        self._sent = sent

    @property
    def problem(self) -> str:
        """Why there are no answers; or empty."""
        return self._predictor.problem

    def answer(self, question: Question, source: str, sequence: int) -> Answer:
        """Predict.

        Args:
            question: what is answered.
            source, sequence: what it is known by, if it comes again.

        Raises:
            PayloadRejected: the model takes something else than what is declared.
        """
        return Answer(source, sequence, self._predictor.answer(question))

    def keep(self, answers: Sequence[Answer]) -> int:
        """Commit answers to the outbox; returns how many had not been given before.

        Raises:
            StoreError: the disk does not take them.
        """
        new = self._outbox.put_many(answers)
        self._sent()
        return new
