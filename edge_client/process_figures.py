"""What the kernel says of a process, read from ``/proc`` (Linux; nothing elsewhere)."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | str = "self") -> int | None:
    """Return the memory that a process holds; None when it cannot be read (it ended)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None


def process_figures() -> dict[str, float]:
    """Return memory, CPU seconds and open files of this process."""
    times = os.times()
    figures = {"cpu_seconds_total": times.user + times.system}
    resident = resident_bytes()
    if resident is not None:
        figures["resident_memory_bytes"] = float(resident)
        figures["open_fds"] = float(len(os.listdir("/proc/self/fd")))
    return figures
