"""The order of runs that are worked on side by side: handed out and yielded from front to back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from fedge.errors import TransportError

MAX_ATTEMPTS = 2
"""A run whose worker died is done again once; it is not the run's fault for sure."""
AHEAD_PER_WORKER = 2
"""Runs a worker that may be done before those in front of them are merged: bounds the memory."""


class RunOrder:
    """Keeps track of which runs wait, which are done and which results are next.

    Args:
        num_runs: in all.
        num_workers: side by side.
    """

    def __init__(self, num_runs: int, num_workers: int) -> None:
        self._num_runs = num_runs
        self._most_ahead = AHEAD_PER_WORKER * num_workers
        self._waiting = deque(range(num_runs))
        self._attempts = [0] * num_runs
        self._done: dict[int, Any] = {}
        self._num_yielded = 0

    @property
    def finished(self) -> bool:
        """Whether every result was taken."""
        return self._num_yielded == self._num_runs

    def take(self) -> int | None:
        """Return the next run to work on; None where all are handed out or far enough ahead."""
        if not self._waiting or self._waiting[0] >= self._num_yielded + self._most_ahead:
            return None
        index = self._waiting.popleft()
        self._attempts[index] += 1
        return index

    def put(self, index: int, result: Any) -> None:
        """Keep a run's result until it is its turn."""
        self._done[index] = result

    def lost(self, index: int, text: str) -> None:
        """Put a run whose worker died in front of those that wait.

        Raises:
            TransportError: it was not the first time; carries the text.
        """
        if self._attempts[index] >= MAX_ATTEMPTS:
            raise TransportError(text)
        self._waiting.appendleft(index)

    def results(self) -> Iterator[Any]:
        """Yield the results whose turn it is."""
        while self._num_yielded in self._done:
            result = self._done.pop(self._num_yielded)
            self._num_yielded += 1  # before the caller merges: it may never come back
            yield result
