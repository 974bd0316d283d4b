"""The clock that rounds are timed by: the machine's, or a simulation's own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that never go back, from an arbitrary start."""

    def monotonic(self) -> float:
        """Return the seconds now."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let that many seconds pass."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Return the seconds now."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the thread for that long."""
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def clock_of(source: object) -> Clock:
    """Return the clock that something brings along as ``clock``; else the machine's."""
    clock: Clock = getattr(source, "clock", SYSTEM_CLOCK)
    return clock
