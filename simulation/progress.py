"""What a person sees while a simulation runs."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from simulation.quantities import format_bytes, format_duration
from simulation.round_figures import tree_rss_bytes

log = logging.getLogger(__name__)

RECENT_ROUNDS = 20


class RoundListener(Protocol):
    """Is told of each round right after it was committed."""

    def on_round(self, metrics: Mapping[str, Any]) -> None:
        """Take the round's line of ``metrics.jsonl``; must not raise."""
        ...


class RoundProgress:
    """A bar on a terminal, one line a round elsewhere; both on stderr.

    Args:
        num_rounds: of the whole run.
        title: what is run, where there are several.
        console: None is stderr.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        num_rounds: int,
        *,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_rounds = num_rounds
        self._title = title
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._seconds: deque[float] = deque(maxlen=RECENT_ROUNDS)
        self._last_at = clock()
        self._bar: Progress | None = None
        self._broken = False

    @contextmanager
    def running(self) -> Iterator[RoundProgress]:
        """Show progress until the block ends."""
        self._last_at = self._clock()
        if not self._console.is_terminal:
            yield self
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
        )
        stderr = sys.stderr
        try:
            with self._bar, _logging_above(stderr):
                self._bar.add_task(self._title or "rounds", total=self._num_rounds, status="")
                yield self
        finally:
            self._bar = None

    def on_round(self, metrics: Mapping[str, Any]) -> None:
        """Show a round; what cannot be shown is logged once, and never raised."""
        try:
            self._show(metrics)
        except Exception as error:  # a display is not worth a run
            if not self._broken:
                log.warning("progress cannot be shown: %s: %s", type(error).__name__, error)
            self._broken = True

    def _show(self, metrics: Mapping[str, Any]) -> None:
        done = int(metrics["round"])
        now = self._clock()
        if done > 0:
            self._seconds.append(now - self._last_at)
        self._last_at = now
        status = self._status(metrics, done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, status=status)
        else:
            title = f"{self._title}: " if self._title else ""
            log.info("%sround %d/%d  %s", title, done, self._num_rounds, status)

    def _status(self, metrics: Mapping[str, Any], done: int) -> str:
        figures = metrics.get("simulation") or {}
        parts = []
        speed = figures.get("clients_per_s")
        if speed is not None:
            parts.append(f"{speed:,.0f} clients/s")
        if self._seconds and done < self._num_rounds:
            left = math.ceil(sum(self._seconds) / len(self._seconds) * (self._num_rounds - done))
            parts.append(f"{timedelta(seconds=left)} left")
        if figures.get("virtual_s"):
            parts.append(f"virtual {format_duration(figures['virtual_s'])}")
        rss_bytes = figures.get("rss_bytes") or tree_rss_bytes()
        if rss_bytes is not None:
            parts.append(f"memory {format_bytes(rss_bytes)}")
        accuracy = metrics.get("accuracy_test")
        if accuracy is not None:
            parts.append(f"accuracy {accuracy:.4f}")
        return "  ".join(parts)


@contextmanager
def _logging_above(stderr: Any) -> Iterator[None]:
    """Let log lines appear above the bar: rich replaced stderr, handlers still hold the old one.

    Args:
        stderr: as it was before.
    """
    moved = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is stderr
    ]
    for handler in moved:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(stderr)
