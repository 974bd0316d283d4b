"""How long to wait before the next attempt: exponential, bounded, with full jitter.

Full jitter spreads a fleet that lost its server at one instant over the whole interval.
Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Delays of one sequence of attempts.

    Args:
        first_s: bound of the first delay.
        longest_s: bound of every delay; must not be less than ``first_s``.
        draw: uniform draw from [0, 1).
    """

    def __init__(
        self, first_s: float, longest_s: float, draw: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._draw = draw
        self._bound_s = first_s

    def next_delay_s(self) -> float:
        """Return a delay in seconds and double the bound of the one after."""
        delay_s = self._draw() * self._bound_s
        self._bound_s = min(2 * self._bound_s, self._longest_s)
        return delay_s

    def reset(self) -> None:
        """Start over: the last attempt succeeded."""
        self._bound_s = self._first_s
