"""Micro-batching: examples that wait at the same time share one call of the runtime.

Off by default. It helps where many ask at once and a call costs more than the arithmetic of one
example; alone, a request waits `max_wait_us` for company that does not come.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from edge_client.inference import Array, Engine, Predictor, Version
from edge_client.settings import InferenceConfig


def preparation(config: InferenceConfig) -> Callable[[Engine], Predictor] | None:
    """Return what is put before each engine that serves, None where nothing is configured."""
    if config.max_batch == 1:
        return None

    def prepare(engine: Engine) -> Predictor:
        engine.load_batches()
        return MicroBatcher(engine, config.max_batch, config.max_wait_us)

    return prepare


class _Waiting:
    """One example until it is answered."""

    __slots__ = ("answered", "error", "inputs", "output", "turn")

    def __init__(self, inputs: Array) -> None:
        self.inputs = inputs
        self.output: Array | None = None
        self.error: Exception | None = None
        self.answered = False
        self.turn = threading.Lock()  # released when it is answered, or when it is to lead
        self.turn.acquire()


class MicroBatcher:
    """Stands before one engine and answers for it; safe across threads.

    There is no thread of its own: the first that waits runs the batch for all, then hands the
    lead to the first of those that came meanwhile. So nothing is left behind after a swap.

    Args:
        engine: answers; each request is checked before it joins a batch.
        max_batch: examples of one batch at most.
        max_wait_us: how long the first waits for a batch to fill; 0 takes those that came while
            the engine was busy.
    """

    def __init__(self, engine: Engine, max_batch: int, max_wait_us: float) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._max_wait_s = max_wait_us / 1e6
        self._lock = threading.Lock()
        self._full = threading.Condition(self._lock)
        self._waiting: deque[_Waiting] = deque()
        self._is_led = False

    @property
    def version(self) -> Version:
        """The version of every answer."""
        return self._engine.version

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self._engine.input_shape

    def predict(self, inputs: Array) -> Array:
        """Return the output of one example, or of a batch, which shares no call with others.

        Raises:
            InvalidInput: wrong shape or dtype, NaN or Inf; says what was expected.
        """
        self._engine.check(inputs)
        if inputs.shape != self.input_shape:
            return self._engine.predict(inputs)
        mine = _Waiting(inputs)
        if not self._join(mine):
            mine.turn.acquire()
        if not mine.answered:
            self._lead()
        if mine.error is not None:
            raise mine.error
        assert mine.output is not None
        return mine.output

    def _join(self, mine: _Waiting) -> bool:
        """Join those who wait; returns whether this request has to lead."""
        with self._lock:
            self._waiting.append(mine)
            if len(self._waiting) >= self._max_batch:
                self._full.notify()
            leads = not self._is_led
            self._is_led = True
        return leads

    def _lead(self) -> None:
        """Answer the first that wait, the caller first of all; then let the next one lead."""
        batch = self._gather()
        self._answer(batch)
        with self._lock:
            heir = self._waiting[0] if self._waiting else None
            self._is_led = heir is not None
        for waiting in batch:
            waiting.answered = True
            waiting.turn.release()
        if heir is not None:
            heir.turn.release()

    def _gather(self) -> list[_Waiting]:
        give_up = time.monotonic() + self._max_wait_s
        with self._lock:
            while len(self._waiting) < self._max_batch:
                left_s = give_up - time.monotonic()
                if left_s <= 0 or not self._full.wait(left_s):
                    break
            size = min(len(self._waiting), self._max_batch)
            return [self._waiting.popleft() for _ in range(size)]

    def _answer(self, batch: list[_Waiting]) -> None:
        """Fill in outputs; where the batch fails each is tried alone, and fails alone."""
        if len(batch) > 1 and self._answer_together(batch):
            return
        for each in batch:
            try:
                each.output = self._engine.predict(each.inputs)
            except Exception as error:  # raised by the request that it belongs to
                each.error = error

    def _answer_together(self, batch: list[_Waiting]) -> bool:
        try:
            outputs = self._engine.predict(np.stack([each.inputs for each in batch]))
        except Exception:  # whoever it is of gets it; those who wait must not wait for ever
            return False
        for each, output in zip(batch, outputs, strict=True):
            each.output = output
        return True
