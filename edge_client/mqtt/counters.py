"""What is counted, by name; safe across threads."""

from __future__ import annotations

import threading
from collections import Counter


class Counters:
    """Numbers that only grow.

    Args:
        names: those that are shown from the start, as 0.
    """

    def __init__(self, *names: str) -> None:
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter(dict.fromkeys(names, 0))

    def add(self, name: str, number: int = 1) -> None:
        """Count."""
        with self._lock:
            self._values[name] += number

    def snapshot(self) -> dict[str, float]:
        """Return every number by its name, which ends in ``_total``."""
        with self._lock:
            return {f"{name}_total": float(value) for name, value in self._values.items()}
