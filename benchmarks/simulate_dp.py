"""Simulated rounds of DP-SGD, against Opacus' PrivacyEngine for each client in turn."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from benchmarks import simulate_cnn, simulate_mlp
from benchmarks.our_engine import PRIVATE, run_ours
from benchmarks.peer_runs import Peer
from benchmarks.peers.work import Work
from benchmarks.turns import Side, describe, ratio, take_turns

OPACUS = Peer("benchmarks.peers.opacus_clients", ("opacus", "torch"))
MODES = ("hooks", "ghost", "functorch", "ew")
NUM_ROUNDS = 4
NUM_TURNS = 3


def measure(*, quick: bool) -> dict[str, Any]:
    works = [
        module.QUICK if quick else replace(module.WORK, num_rounds=NUM_ROUNDS)
        for module in (simulate_mlp, simulate_cnn)
    ]
    sides = {}
    for work in works:
        sides[f"ours_{work.model}"] = Side(run_ours, [replace(work, mode=PRIVATE)])
        sides[f"opacus_{work.model}"] = Side(OPACUS.run, opacus_settings(work, quick=quick))
    num_turns = 1 if quick else NUM_TURNS
    outcomes = take_turns(sides, num_turns)
    engines = describe(outcomes)
    names = [work.model for work in works]
    return {
        "setup": _setup(works, num_turns),
        **{
            f"ratio_to_opacus_{name}": ratio(outcomes[f"opacus_{name}"], outcomes[f"ours_{name}"])
            for name in names
        },
        **{
            f"clients_per_s_{work.model}": work.num_clients
            / float(str(engines[f"ours_{work.model}"]["round_s"]))
            for work in works
        },
        "engines": engines,
    }


def opacus_settings(work: Work, *, quick: bool) -> list[Work]:
    """Return each way of taking gradients of single examples; one process a core."""
    modes = MODES[:1] if quick else MODES
    return [replace(work, num_processes=os.cpu_count() or 1, mode=mode) for mode in modes]


def _setup(works: list[Work], num_turns: int) -> str:
    sizes = " and ".join(
        f"{work.model} of {work.num_clients} clients x {work.num_examples} random samples"
        for work in works
    )
    return (
        f"{sizes}; DP-SGD with noise multiplier 1 and per-example clipping at 1, Poisson batches "
        "of 10 expected, as many steps as make one epoch, all clients in every round, no "
        f"evaluation; medians over rounds 2 to {works[0].num_rounds}, ours with its ledger and "
        "from commit to commit; opacus: make_private for each client, one process a core with one "
        "thread, best of its grad_sample_mode in the first turn, no epsilon computed, batches by "
        f"index from its own sampler; ratios are medians of {num_turns} interleaved turns"
    )
