"""What every benchmark shares: its name, its result, and how it says that it cannot run here."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError

MODULES = {
    "aggregate": "benchmarks.aggregate",
    "codec": "benchmarks.codec",
    "codec-accuracy": "benchmarks.codec_accuracy",
    "contention": "benchmarks.contention",
    "demo": "benchmarks.demo",
    "infer-profile": "benchmarks.infer_profile",
    "inference": "benchmarks.inference",
    "poison": "benchmarks.poison",
    "refine": "benchmarks.refine",
    "robust": "benchmarks.robust",
    "simulate-cnn": "benchmarks.simulate_cnn",
    "simulate-dp": "benchmarks.simulate_dp",
    "simulate-gpu": "benchmarks.simulate_gpu",
    "simulate-mlp": "benchmarks.simulate_mlp",
    "simulate-niid": "benchmarks.simulate_niid",
    "simulate-real": "benchmarks.simulate_real",
    "simulate-scale": "benchmarks.simulate_scale",
    "swap": "benchmarks.swap",
    "trainer": "benchmarks.trainer",
    "trainer-gpu": "benchmarks.trainer_gpu",
    "tune": "benchmarks.tune",
}
CANNOT_RUN = 3
USAGE = 2
_NOT_TAKEN = {
    "results": "{name} keeps no finished runs: leave --results out",
    "only": "{name} does all of its runs or none: leave --only out",
    "rounds": "{name} has a fixed number of rounds: leave --rounds out",
}


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


def run(
    name: str,
    *,
    quick: bool,
    results: Path | None = None,
    only: Sequence[str] | None = None,
    rounds: int | None = None,
) -> int:
    """Run one benchmark; returns the exit status.

    Args:
        name: a key of `MODULES`.
        quick: smallest sizes.
        results: where a benchmark of many runs keeps the finished ones.
        only: which of its runs a benchmark of many does; None does all.
        rounds: of each of its federations; None takes what its figures are for.
    """
    measure: Callable[..., dict[str, Any]] = importlib.import_module(MODULES[name]).measure
    given = {"results": results, "only": only, "rounds": rounds}
    options = {key: value for key, value in given.items() if value is not None}
    for key in options:
        if key not in inspect.signature(measure).parameters:
            progress(_NOT_TAKEN[key].format(name=name))
            return USAGE
    try:
        result = measure(quick=quick, **options)
    except CannotRun as reason:
        progress(f"cannot run here: {reason}")
        return CANNOT_RUN
    except ConfigError as error:
        progress(str(error))
        return USAGE
    print(json.dumps({"name": name, "machine": machine(), "quick": quick, **result}))
    return 0
