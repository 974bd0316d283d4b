"""Virtual time: it passes only where a simulation says so."""

from __future__ import annotations

import math


class VirtualClock:
    """A `fedge.clock.Clock` whose sleeps return at once.

    Args:
        start_s: virtual seconds at the start; a resumed run goes on from its last round's end.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = _passable(start_s)

    def monotonic(self) -> float:
        """Return the virtual seconds since the run began."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let virtual seconds pass; no real ones do."""
        self._now_s += _passable(seconds)

    def advance_to(self, at_s: float) -> None:
        """Go on to a moment; one that has passed already changes nothing."""
        self._now_s = max(self._now_s, _passable(at_s))


def _passable(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"virtual time takes finite seconds of 0 or more, got {seconds!r}")
    return float(seconds)
