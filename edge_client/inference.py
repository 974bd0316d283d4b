"""Predictions from the local model, at once, while versions come and go.

An engine is one version and never another. Serving holds the current engine
and exchanges it as one reference: a request takes it once and is answered by that version alone,
however many swaps happen meanwhile. Neither torch nor Flower is imported here.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedge.errors import InvalidInput as InvalidInput
from fedge.errors import ModelError
from fedge.tflite.runner import Runner

Array = npt.NDArray[Any]
log = logging.getLogger(__name__)

_LARGEST_DOT = 8192  # beyond it OpenBLAS would start threads of its own


@dataclass(frozen=True)
class Version:
    """Which model answers.

    Attributes:
        round: 0 for the model as shipped.
        digest: SHA-256 (hex) of the published weights, whatever layers a device has of its own.
    """

    round: int
    digest: str


class Prediction(NamedTuple):
    """An answer and the one version that gave it.

    Attributes:
        output: ``[...]`` of one example, or ``[B, ...]``.
        latency_us: time in the engine, waiting for other requests included.
    """

    output: Array
    version: Version
    latency_us: float


class Predictor(Protocol):
    """What answers with one version: an `Engine`, or what stands before one."""

    @property
    def version(self) -> Version:
        """The version of every answer."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        ...

    def predict(self, inputs: Array) -> Array:
        """Return the output of one example, or the outputs of a batch; see `Engine.predict`."""
        ...


@dataclass(frozen=True)
class Batched:
    """The same version with graphs for batches, for when one is asked for.

    Attributes:
        least: examples of the smallest batch that has a graph.
        make: returns the model.
    """

    least: int
    make: Callable[[], bytes]


class Engine:
    """One model version, safe across threads: requests take turns in the runtime.

    Args:
        batched: takes over for good when the first batch comes that has a graph there.

    Attributes:
        input_shape: of one example.
        input_dtype: of the input.

    Raises:
        ModelError: no runtime is installed, or it refuses the model.
    """

    def __init__(
        self, model: bytes, version: Version, num_threads: int = 1, batched: Batched | None = None
    ) -> None:
        self.version = version
        self._num_threads = num_threads
        self._runner = self._start(model)
        self._batched = batched
        self._loading = threading.Lock()
        self.input_shape: tuple[int, ...] = self._runner.input_shape
        self.input_dtype: np.dtype[Any] = self._runner.input_dtype
        self._is_float = self.input_dtype.kind == "f"
        self._turns = _Turns()

    def predict(self, inputs: Array) -> Array:
        """Return the output of one example, or the outputs ``[B, ...]`` of a batch.

        Others' requests take their turns between the parts of a long batch.

        Args:
            inputs: one example of `input_shape`, or a batch with a leading dimension.

        Raises:
            InvalidInput: wrong shape or dtype, NaN or Inf; says what was expected.
            ModelError: the runtime failed.
        """
        turns = self._turns
        if self.check(inputs):
            turns.take()
            try:
                return self._runner.run_one(inputs)
            finally:
                turns.leave()
        batched = self._batched
        if batched is not None and len(inputs) >= batched.least:
            self.load_batches()
        runner = self._runner
        outputs = np.empty((len(inputs), *runner.output_shape), runner.output_dtype)
        for part in runner.parts(len(inputs)):
            turns.take()
            try:
                outputs[part] = runner.run_part(inputs[part])
            finally:
                turns.leave()
        return outputs

    @property
    def has_taken_batches(self) -> bool:
        """Tell whether there are graphs for batches now."""
        return self._runner.batch_sizes != (1,)

    def load_batches(self) -> None:
        """Take in the graphs for batches; without them each example is answered by itself."""
        with self._loading:
            if self._batched is None:
                return
            try:
                self._runner = self._start(self._batched.make())
            except (ModelError, MemoryError) as error:
                log.warning("batches are answered one example at a time: %s", error)
            self._batched = None

    def _start(self, model: bytes) -> Runner:
        runner = Runner(model, self._num_threads)
        # The first call plans memory; no request should wait for that.
        runner.run_one(np.zeros(runner.input_shape, runner.input_dtype))
        return runner

    def check(self, inputs: Any) -> bool:
        """Let nothing but finite numbers of the model's shape and dtype pass.

        Returns:
            Whether it is one example, and no batch.

        Raises:
            InvalidInput: says what was expected.
        """
        if not isinstance(inputs, np.ndarray):
            raise InvalidInput(f"input: expected a numpy array, got {type(inputs).__name__}")
        expected, shape = self.input_shape, inputs.shape
        is_one: bool = shape == expected
        if not is_one and shape[1:] != expected:
            raise InvalidInput(
                f"input: expected shape {list(expected)} or {['B', *expected]}, got {list(shape)}"
            )
        if inputs.dtype != self.input_dtype:
            raise InvalidInput(f"input: expected {self.input_dtype.name}, got {inputs.dtype.name}")
        if self._is_float and not is_finite(inputs):
            raise InvalidInput("input: expected finite numbers, got NaN or Inf")
        return is_one


class _Turns:
    """A lock that those who wait get in the order in which they came.

    A plain lock goes to whoever asks when it is free: mostly to the thread that has just released
    it, which still holds the interpreter's lock. With eight threads on a 65 us model that made p99
    five times what it is in order. While nobody waits it costs one lock, taken and released.
    """

    __slots__ = ("_changing", "_taken", "_waiting")

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._taken = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()

    def take(self) -> None:
        """Wait for the turn; it stays taken until `leave`."""
        if self._taken.acquire(False):
            return
        turn = threading.Lock()
        turn.acquire()
        with self._changing:
            self._waiting.append(turn)
        try:
            self._hand_over_if_free()  # whoever had it may have left before we were in the line
            turn.acquire()
        except BaseException:  # Ctrl-C: a turn given to one who is gone would never end
            self._step_out(turn)
            raise

    def leave(self) -> None:
        """Let the next have it, if one waits."""
        if self._waiting:
            self._hand_over()
            return
        self._taken.release()
        if self._waiting:  # one who came in between found it taken
            self._hand_over_if_free()

    def _step_out(self, turn: threading.Lock) -> None:
        with self._changing:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self.leave()  # it was given to us meanwhile

    def _hand_over_if_free(self) -> None:
        if self._taken.acquire(False):
            self._hand_over()

    def _hand_over(self) -> None:
        """Give away what this thread has: it stays taken, by the next."""
        with self._changing:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken.release()


def is_finite(values: Array) -> bool:
    """Tell whether a float array holds neither NaN nor Inf.

    The sum of squares is finite only if every value is, and takes half the time of asking for
    each; where it is not, large values may have overflowed, so each is asked.
    """
    if values.size <= _LARGEST_DOT and math.isfinite(np.vdot(values, values)):
        return True
    return bool(np.isfinite(values).all())


class Serving:
    """The engine that answers now, and how many times it did.

    Args:
        engine: None where a device starts without any model and waits for its first version.
        prepare: returns what stands before each engine that serves, such as a `MicroBatcher`;
            None has nothing there.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        prepare: Callable[[Engine], Predictor] | None = None,
    ) -> None:
        self._prepare = prepare
        self._plain: Engine | None = None
        self._engine: Predictor | None = None
        if engine is not None:
            self._put(engine)
        self._reloading = threading.Lock()
        self._counting = threading.Lock()
        self._num_predictions = 0
        self._num_failures = 0
        self._num_swaps = 0

    @property
    def engine(self) -> Engine | None:
        """The engine behind what the next request gets; None while there is no model yet."""
        return self._plain

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
        engine, plain = self._engine, self._plain
        if engine is not None and plain is not None:
            engine.predict(np.zeros(plain.input_shape, plain.input_dtype))
        return engine is not None

    def swap(self, engine: Engine) -> None:
        """Let another engine answer from the next request on; those under way finish first."""
        self._put(engine)
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

    def _put(self, engine: Engine) -> None:
        before = self._plain
        if before is not None and before.has_taken_batches:
            engine.load_batches()  # here nobody waits for it
        self._plain = engine
        self._engine = engine if self._prepare is None else self._prepare(engine)

    def _current(self) -> Predictor:
        engine = self._engine
        if engine is None:
            raise ModelError(
                "no model yet: the task ships none and the registry has published none; this "
                "device answers as soon as a version arrives"
            )
        return engine
