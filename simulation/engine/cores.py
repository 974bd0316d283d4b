"""How many cores there are for workers."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux knows of limits that others do not have
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
