"""One wait for the disk for all who are waiting: commits that come at once are made together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Waiting(Generic[T, R]):
    item: T
    answer: list[R]  # one element, once it is committed
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return bool(self.answer) or self.error is not None


class GroupCommit(Generic[T, R]):
    """Commits items of many threads; whoever comes first commits for those who came meanwhile.

    Args:
        commit: commits items as one step and returns an answer for each; called by one thread
            at a time. What it raises, everyone whose item it was gets.
    """

    def __init__(self, commit: Callable[[list[T]], list[R]]) -> None:
        self._commit = commit
        self._queue_lock = threading.Lock()
        self._queue: list[_Waiting[T, R]] = []
        self._committing = threading.Lock()

    def submit(self, item: T) -> R:
        """Return the answer for an item once it is committed."""
        waiting: _Waiting[T, R] = _Waiting(item, [])
        with self._queue_lock:
            self._queue.append(waiting)
        with self._committing:
            if not waiting.done:
                self._commit_queue()
        if waiting.error is not None:
            raise waiting.error
        return waiting.answer[0]

    def _commit_queue(self) -> None:
        with self._queue_lock:
            group, self._queue = self._queue, []
        try:
            answers = self._commit([waiting.item for waiting in group])
        except Exception as error:
            for waiting in group:
                waiting.error = error
            return
        for waiting, answer in zip(group, answers, strict=True):
            waiting.answer.append(answer)
