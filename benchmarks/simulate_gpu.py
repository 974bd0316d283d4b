"""pfl-research's CIFAR-10-shaped benchmark on a GPU, against pfl on the same card."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.engines import PFL
from benchmarks.harness import CannotRun
from benchmarks.our_engine import run_ours
from benchmarks.peers.work import CIFAR, Work
from benchmarks.turns import Side, describe, ratio, take_turns

WORK = Work(CIFAR, num_clients=1000, num_examples=50, num_rounds=8, cohort_size=50, device="cuda")
NUM_TURNS = 3


def measure(*, quick: bool) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise CannotRun("torch sees no CUDA device; this benchmark compares engines on one card")
    sides = {"ours": Side(run_ours, [WORK]), "pfl": Side(PFL.run, [WORK])}
    num_turns = 1 if quick else NUM_TURNS
    outcomes = take_turns(sides, num_turns)
    engines = describe(outcomes)
    return {
        "setup": (
            f"{WORK.num_clients} clients x {WORK.num_examples} random samples of 3 x 32 x 32, "
            f"cohort {WORK.cohort}, a CNN of 1,626,442 parameters, batch {WORK.batch_size}, one "
            f"epoch of SGD, no evaluation; medians over rounds 2 to {WORK.num_rounds}, ours from "
            f"commit to commit; ratio: median of {num_turns} interleaved turns"
        ),
        "gpu": torch.cuda.get_device_name(),
        "clients_per_s": WORK.cohort / float(str(engines["ours"]["round_s"])),
        "ratio_to_pfl": ratio(outcomes["pfl"], outcomes["ours"]),
        "engines": engines,
    }
