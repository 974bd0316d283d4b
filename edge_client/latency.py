"""How long predictions take, as counts by duration."""

from __future__ import annotations

import threading
from bisect import bisect_left

from fedge.metrics_page import Histogram

BOUNDS_US = (
    *(10, 20, 50, 100, 200, 500),
    *(1_000, 2_000, 5_000, 10_000, 20_000, 50_000),
    *(100_000, 500_000, 2_000_000),
)


class LatencyHistogram:
    """Counts durations; safe across threads.

    Where answers leave the service, not in the engine: the engine's own budget is microseconds,
    and it says how long it took with each answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS_US) + 1)
        self._total_us = 0.0

    def observe(self, latency_us: float) -> None:
        """Count one answer."""
        index = bisect_left(BOUNDS_US, latency_us)
        with self._lock:
            self._counts[index] += 1
            self._total_us += latency_us

    def read(self) -> Histogram:
        """Return what was counted, in seconds."""
        with self._lock:
            counts, total_us = tuple(self._counts), self._total_us
        return Histogram(tuple(bound / 1e6 for bound in BOUNDS_US), counts, total_us / 1e6)
