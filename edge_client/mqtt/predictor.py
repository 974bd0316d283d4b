"""From a sample to what is sent back for it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from edge_client.inference import Array, Prediction
from edge_client.mqtt.counters import Counters
from fedge.errors import FedgeError, InvalidInput, PayloadRejected


class Predicting(Protocol):
    """What answers; `edge_client.inference.Serving` does."""

    def predict(self, inputs: Array) -> Prediction:
        """Answer one request."""


class Question(Protocol):
    """What is answered: a sample, or a window of readings."""

    @property
    def source(self) -> str:
        """Who sent it."""

    @property
    def sequence(self) -> int:
        """Its number there; of a window that of its first reading."""

    @property
    def sample_id(self) -> str:
        """What it is labelled by."""

    @property
    def inputs(self) -> Array:
        """What the model is asked."""


class Predictor:
    """Answers samples from the model that serves now.

    Args:
        serving: the model.
        counters: what is counted.
        clock: seconds since 1970.
    """

    def __init__(
        self, serving: Predicting, counters: Counters, clock: Callable[[], float] = time.time
    ) -> None:
        self._serving = serving
        self._counters = counters
        self._clock = clock
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why samples are not answered; or empty."""
        return self._problem

    def answer(self, sample: Question) -> bytes | None:
        """Return the prediction as a JSON object; None while there is no model that answers.

        Raises:
            PayloadRejected: the model takes something else than what is declared.
        """
        try:
            prediction = self._serving.predict(sample.inputs)
        except InvalidInput as error:
            self._problem = f"mqtt.schema does not fit the model: {error}"
            raise PayloadRejected("model-input", f"does not fit the model: {error}") from error
        except FedgeError as error:
            self._problem = f"samples are kept and not answered: {error}"
            self._counters.add("samples_unanswered")
            return None
        self._problem = ""
        return self._body(sample, prediction)

    def _body(self, sample: Question, prediction: Prediction) -> bytes:
        output, version = prediction.output, prediction.version
        values = [_number(value) for value in output.ravel()]
        body = {
            "source": sample.source,
            "source_sequence": sample.sequence,
            "sample_id": sample.sample_id,
            "output": values,
            "shape": list(output.shape),
            "model": {"round": version.round, "digest": version.digest},
            "latency_us": round(prediction.latency_us, 1),
            "predicted_at": round(self._clock(), 3),
        }
        return json.dumps(body, separators=(",", ":")).encode()


def _number(value: Any) -> float | None:
    """Return a number for JSON, which has no NaN and no infinity."""
    number = float(str(value))  # str gives the shortest decimals that are the same float32
    return number if math.isfinite(number) else None
