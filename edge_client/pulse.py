"""Signs of life of the loops beside the predictions."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pulse:
    """Says by when a loop must show itself again.

    A loop calls `beat` before each step that may take a while. One that never began is not
    waited for.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: float | None = None

    def beat(self, within_s: float | None) -> None:
        """Promise to be back in so many seconds; None: whenever something happens."""
        self._due = None if within_s is None else self._clock() + within_s

    @property
    def late_s(self) -> float:
        """Seconds since the loop should have been back; 0 when all is well."""
        due = self._due
        return 0.0 if due is None else max(0.0, self._clock() - due)
