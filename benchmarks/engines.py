"""Rounds of plain federated averaging: ours, Flower's, pfl's and a bare loop, in turns."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from benchmarks.our_engine import run_ours
from benchmarks.peer_runs import Peer
from benchmarks.peers.work import Work
from benchmarks.turns import Side, describe, ratio, take_turns

FLOWER = Peer("benchmarks.peers.flower_simulation", ("flwr[simulation]", "torch"))
PFL = Peer("benchmarks.peers.pfl_simulation", ("pfl==0.6", "torch"), torchrun=True)
LIMIT = Peer("benchmarks.peers.bare_loop")
NUM_TURNS = 3
TIMES_OUR_ROUNDS = 4
"""Ours are the shortest: of as many, a moment's noise would move the median most."""
NUM_FLOWER_ROUNDS = 4
"""Of Flower's start-up a run takes longest; its rounds vary least."""


def compare_engines(work: Work, *, quick: bool) -> dict[str, Any]:
    """Return how fast each engine does the work and how ours compares."""
    num_cores = os.cpu_count() or 1
    our_rounds = work.num_rounds if quick else TIMES_OUR_ROUNDS * work.num_rounds
    sides = {
        "ours": Side(run_ours, [replace(work, num_rounds=our_rounds)]),
        "flower": Side(FLOWER.run, flower_settings(work, num_cores, quick=quick)),
        "pfl": Side(PFL.run, pfl_settings(work, num_cores, quick=quick)),
        "limit": Side(LIMIT.run, [replace(work, num_processes=num_cores)]),
    }
    num_turns = 1 if quick else NUM_TURNS
    outcomes = take_turns(sides, num_turns)
    engines = describe(outcomes)
    ours = outcomes["ours"]
    return {
        "setup": _setup(work, our_rounds, num_turns),
        "clients_per_s": work.num_clients / float(str(engines["ours"]["round_s"])),
        **{f"ratio_to_{name}": ratio(outcomes[name], ours) for name in sides if name != "ours"},
        "engines": engines,
    }


def flower_settings(work: Work, num_cores: int, *, quick: bool) -> list[Work]:
    """Return actors × threads: one actor a core, more than that, and one with all threads."""
    rounds = min(work.num_rounds, NUM_FLOWER_ROUNDS)
    each = [replace(work, num_processes=n * num_cores, num_rounds=rounds) for n in (1, 2, 4)]
    return each[:1] if quick else [*each, replace(each[0], num_processes=1, num_threads=num_cores)]


def pfl_settings(work: Work, num_cores: int, *, quick: bool) -> list[Work]:
    """Return ranks × threads: one rank a core, and one rank with one thread and with all."""
    one = replace(work, num_processes=1)
    if quick:
        return [one]
    return [replace(work, num_processes=num_cores), one, replace(one, num_threads=num_cores)]


def _setup(work: Work, our_rounds: int, num_turns: int) -> str:
    flower_rounds = min(work.num_rounds, NUM_FLOWER_ROUNDS)
    return (
        f"{work.num_clients} clients x {work.num_examples} random samples, {work.model}, batch "
        f"{work.batch_size}, one local epoch of SGD, float32, all clients in every round, no "
        f"evaluation; seconds a round are medians over rounds 2 to {work.num_rounds} (ours: "
        f"{our_rounds}, Flower: {flower_rounds}) of each engine's own clock, ours from commit to "
        f"commit with everything a run writes on disk; ratios are medians of {num_turns} "
        "interleaved turns, peers at the best of their settings (processes x threads) in the "
        "first; limit: one process a core with one thread, plain torch loops and a sum"
    )
