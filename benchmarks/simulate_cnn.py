"""Simulated rounds of a small CNN, against Flower's simulation, pfl and a bare loop."""

from __future__ import annotations

from typing import Any

from benchmarks.engines import compare_engines
from benchmarks.peers.work import CNN, Work

WORK = Work(CNN, num_clients=64, num_examples=60, num_rounds=6)
QUICK = Work(CNN, num_clients=4, num_examples=20, num_rounds=3)


def measure(*, quick: bool) -> dict[str, Any]:
    return compare_engines(QUICK if quick else WORK, quick=quick)
