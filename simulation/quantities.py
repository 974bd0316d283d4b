"""Sizes, times and means over seeds as a person reads them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """Return the mean, and ± the sample standard deviation where there are several."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def format_bytes(size_bytes: float) -> str:
    """Return a size in the largest binary unit that leaves at least 1 of it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Return a time as a person says it: ``3 d 4 h``, ``5 h 12 min``, ``2 min 5 s``, ``1.5 s``."""
    if seconds < 59.95:  # what is printed as 60.0 is a minute
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, names in (
        (86400, 3600, ("d", "h")),
        (3600, 60, ("h", "min")),
        (60, 1, ("min", "s")),
    ):
        if whole >= large:
            return f"{whole // large} {names[0]} {whole % large // small} {names[1]}"
    return f"{whole} s"
