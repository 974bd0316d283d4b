"""Predictions from the local model, at once, while versions come and go.

An engine is one version in one interpreter and never changes. Serving holds the current engine
and exchanges it as one reference: a request takes it once and is answered by that version alone,
however many swaps happen meanwhile. Neither torch nor Flower is imported here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import InvalidInput as InvalidInput
from fedge.errors import ModelError
from fedge.tflite.runner import Runner

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Version:
    """Which model answers.

    Attributes:
        round: 0 for the model as shipped.
        digest: SHA-256 (hex) of the published weights, whatever layers a device has of its own.
    """

    round: int
    digest: str


@dataclass(frozen=True)
class Prediction:
    """An answer and the one version that gave it.

    Attributes:
        output: ``[...]`` of one example, or ``[B, ...]``.
        latency_us: time in the engine, waiting for other requests included.
    """

    output: Array
    version: Version
    latency_us: float


class Engine:
    """One model version, safe across threads: requests take turns in its interpreter.

    Raises:
        ModelError: no runtime is installed, or it refuses the model.
    """

    def __init__(self, model: bytes, version: Version, num_threads: int = 1) -> None:
        self.version = version
        self._runner = Runner(model, num_threads)
        self._lock = threading.Lock()
        # The first call plans memory and packs weights; no request should wait for that.
        self._runner.run_one(np.zeros(self.input_shape, self.input_dtype))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._runner.input_shape

    @property
    def input_dtype(self) -> np.dtype[Any]:
        """Dtype of the input."""
        return self._runner.input_dtype

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """How many examples one call of the runtime can take, largest first."""
        return self._runner.batch_sizes

    def predict(self, inputs: Array) -> Array:
        """Return the output of one example, or the outputs ``[B, ...]`` of a batch.

        Args:
            inputs: one example of `input_shape`, or a batch with a leading dimension.

        Raises:
            InvalidInput: wrong shape or dtype, NaN or Inf; says what was expected.
        """
        self._check(inputs)
        with self._lock:
            if inputs.shape == self._runner.input_shape:
                return self._runner.run_one(inputs)
            return self._runner.run(inputs)

    def _check(self, inputs: Array) -> None:
        shape, dtype = self._runner.input_shape, self._runner.input_dtype
        if inputs.shape != shape and inputs.shape[1:] != shape:
            raise InvalidInput(
                f"input: expected shape {list(shape)} or {['B', *shape]}, got {list(inputs.shape)}"
            )
        if inputs.dtype != dtype:
            raise InvalidInput(f"input: expected {dtype.name}, got {inputs.dtype.name}")
        if dtype.kind == "f" and not np.isfinite(inputs).all():
            raise InvalidInput("input: expected finite numbers, got NaN or Inf")


class Serving:
    """The engine that answers now, and how many times it did.

    Args:
        engine: None where a device starts without any model and waits for its first version.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine
        self._reloading = threading.Lock()
        self._counting = threading.Lock()
        self._num_predictions = 0
        self._num_failures = 0
        self._num_swaps = 0

    @property
    def engine(self) -> Engine | None:
        """The engine that the next request gets; None while there is no model yet."""
        return self._engine

    @property
    def version(self) -> Version:
        """The version that the next request gets.

        Raises:
            ModelError: there is no model yet.
        """
        return self._current().version

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example.

        Raises:
            ModelError: there is no model yet.
        """
        return self._current().input_shape

    @property
    def num_predictions(self) -> int:
        """Requests answered; a batch is one request."""
        return self._num_predictions

    @property
    def num_failures(self) -> int:
        """Requests that raised."""
        return self._num_failures

    def snapshot(self) -> dict[str, float]:
        """Return what was counted since the daemon started, and the round that answers."""
        counted = {
            "predictions_total": float(self._num_predictions),
            "prediction_failures_total": float(self._num_failures),
            "model_swaps_total": float(self._num_swaps),
        }
        engine = self._engine
        return counted if engine is None else {**counted, "model_round": engine.version.round}

    def probe(self) -> bool:
        """Let the engine answer once, uncounted; False while there is none.

        Raises:
            ModelError: the runtime fails.
        """
        engine = self._engine
        if engine is not None:
            engine.predict(np.zeros(engine.input_shape, engine.input_dtype))
        return engine is not None

    def swap(self, engine: Engine) -> None:
        """Let another engine answer from the next request on; those under way finish first."""
        self._engine = engine
        with self._counting:
            self._num_swaps += 1

    def reload(self, load: Callable[[], Engine]) -> None:
        """Load an engine and swap it in, one caller at a time: the last has the newest.

        Raises:
            ModelError: what ``load`` raises; the engine that answers stays.
        """
        with self._reloading:
            self.swap(load())

    def predict(self, inputs: Array) -> Prediction:
        """Answer one request with the current version.

        Raises:
            InvalidInput: the input is not what the model takes.
            ModelError: there is no model yet.
        """
        started = time.perf_counter_ns()
        try:
            engine = self._current()
            output = engine.predict(inputs)
        except Exception:  # counted, not handled
            with self._counting:
                self._num_failures += 1
            raise
        latency_us = (time.perf_counter_ns() - started) / 1000
        with self._counting:
            self._num_predictions += 1
        return Prediction(output, engine.version, latency_us)

    def _current(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise ModelError(
                "no model yet: the task ships none and the registry has published none; this "
                "device answers as soon as a version arrives"
            )
        return engine
