"""What every benchmark shares: its name, its result, and how it says that it cannot run here."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = {"demo": "benchmarks.demo"}
CANNOT_RUN = 3


class CannotRun(Exception):
    """This machine lacks what the benchmark measures; the text says what."""


def progress(text: str) -> None:
    """Say on standard error what is going on."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """Return the processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def run(name: str, *, quick: bool) -> int:
    """Run one benchmark; returns the exit status."""
    measure: Callable[..., dict[str, Any]] = importlib.import_module(MODULES[name]).measure
    try:
        result = measure(quick=quick)
    except CannotRun as reason:
        progress(f"cannot run here: {reason}")
        return CANNOT_RUN
    print(json.dumps({"name": name, "machine": machine(), "quick": quick, **result}))
    return 0
