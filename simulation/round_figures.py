"""What a simulated round cost: virtual time, bytes, devices that failed, and this machine."""

from __future__ import annotations

import os
import resource
from collections import Counter
from pathlib import Path
from typing import Any

_KIB = 1024


class RoundFigures:
    """Collects the figures of the open round, for its line in ``metrics.jsonl``.

    Memory is that of all processes when the round ends; the peak is the largest so far, or the most
    that this process ever held.
    """

    def __init__(self) -> None:
        self._peak_rss_bytes = 0
        self._begin()

    def note_training(
        self,
        *,
        num_clients: int,
        seconds: float,
        outcomes: dict[str, int],
        bytes_down: int,
        bytes_up: int,
    ) -> None:
        """Add some clients' training; a round may have several parts."""
        self._num_clients += num_clients
        self._seconds += seconds
        self._outcomes.update(outcomes)
        self._bytes_down += bytes_down
        self._bytes_up += bytes_up

    def take(self, virtual_s: float) -> dict[str, Any]:
        """Return the round's figures and begin the next round's.

        Args:
            virtual_s: where virtual time stands at the round's end.
        """
        rss_bytes = tree_rss_bytes()
        self._peak_rss_bytes = max(self._peak_rss_bytes, rss_bytes or 0, peak_rss_bytes())
        speed = self._num_clients / self._seconds if self._seconds > 0 else None
        figures = {
            "virtual_s": virtual_s,
            "bytes_down": self._bytes_down,
            "bytes_up": self._bytes_up,
            "outcomes": {name: num for name, num in self._outcomes.items() if num},
            "clients_per_s": speed,
            "rss_bytes": rss_bytes,
            "peak_rss_bytes": self._peak_rss_bytes,
        }
        self._begin()
        return figures

    def _begin(self) -> None:
        self._num_clients = self._bytes_down = self._bytes_up = 0
        self._seconds = 0.0
        self._outcomes: Counter[str] = Counter()


def tree_rss_bytes() -> int | None:
    """Return what this process and its children hold now; None where /proc does not say."""
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return sum(_rss_bytes(pid) for pid in ["self", *children])
    except OSError:
        return None


def peak_rss_bytes() -> int:
    """Return the most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def _rss_bytes(pid: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended in between
        return 0
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmRSS"))
