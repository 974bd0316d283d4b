"""What every benchmark shares: its name, its result, and how it says that it cannot run here."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = {
    "aggregate": "benchmarks.aggregate",
    "codec": "benchmarks.codec",
    "codec-accuracy": "benchmarks.codec_accuracy",
    "demo": "benchmarks.demo",
    "poison": "benchmarks.poison",
    "robust": "benchmarks.robust",
}
CANNOT_RUN = 3
USAGE = 2


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


def run(name: str, *, quick: bool, results: Path | None = None) -> int:
    """Run one benchmark; returns the exit status.

    Args:
        name: a key of `MODULES`.
        quick: smallest sizes.
        results: where a benchmark of many runs keeps the finished ones.
    """
    measure: Callable[..., dict[str, Any]] = importlib.import_module(MODULES[name]).measure
    options = {} if results is None else {"results": results}
    if not options.keys() <= inspect.signature(measure).parameters.keys():
        progress(f"{name} keeps no finished runs: leave --results out")
        return USAGE
    try:
        result = measure(quick=quick, **options)
    except CannotRun as reason:
        progress(f"cannot run here: {reason}")
        return CANNOT_RUN
    print(json.dumps({"name": name, "machine": machine(), "quick": quick, **result}))
    return 0
