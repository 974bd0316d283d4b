"""Simulated rounds of a small MLP, against Flower's simulation, pfl and a bare loop."""

from __future__ import annotations

from typing import Any

from benchmarks.engines import compare_engines
from benchmarks.peers.work import MLP, Work

WORK = Work(MLP, num_clients=256, num_examples=80, num_rounds=10)
QUICK = Work(MLP, num_clients=8, num_examples=20, num_rounds=3)


def measure(*, quick: bool) -> dict[str, Any]:
    return compare_engines(QUICK if quick else WORK, quick=quick)
