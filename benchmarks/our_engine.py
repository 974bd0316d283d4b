"""The simulation as its users run it, timed from commit to commit."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.peers.work import Work
from benchmarks.tasks.small_models import SmallModel
from fedge.config import build
from simulation.runner import simulate
from simulation.settings import SimulateConfig

PRIVATE = "dp"
"""`Work.mode` that trains by DP-SGD, at noise multiplier and clipping norm 1."""
_ENOUGH_EPSILON = 1e9


def run_ours(work: Work) -> list[float]:
    """Return the seconds from commit to commit, in a process of its own like every peer's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_simulate, work).result()


def config_of(work: Work, run_dir: Path) -> SimulateConfig:
    """Return plain federated averaging of every client; what is not named is the default."""
    is_private = work.mode == PRIVATE
    server: dict[str, Any] = {
        "run_dir": str(run_dir),
        "rounds": {
            "num_rounds": work.num_rounds,
            "deadline_s": 3600.0,
            "cohort_size": work.cohort_size,
        },
        "train": {
            "learning_rate": work.learning_rate,
            "local_epochs": 1,
            "batch_size": work.batch_size,
            "clip_norm": 1.0,
        },
        "aggregation": {"aggregator": "weighted-mean", "codec": "raw"},
        "evaluate": {"every_rounds": 0},
    }
    privacy: dict[str, Any] = {"enabled": is_private}
    if is_private:
        privacy |= {
            "epsilon": _ENOUGH_EPSILON,
            "noise_multiplier": 1.0,
            "declared_examples": work.num_examples,
        }
    tree = {
        "num_clients": work.num_clients,
        "holdout_fraction": 0.0,
        "server": server,
        "privacy": privacy,
        "engine": {} if work.device == "cpu" else {"device": work.device, "workers": 1},
    }
    return build(SimulateConfig, tree)


def _simulate(work: Work) -> list[float]:
    logging.disable(logging.WARNING)
    task = SmallModel(work.model, work.num_clients, work.num_examples)
    # On a disk: what a run writes down in each round is part of its time.
    with tempfile.TemporaryDirectory(prefix="fedge-benchmark-") as folder:
        rounds = simulate(config_of(work, Path(folder) / "run"), task=task).rounds
    for entry in rounds[1:]:
        if entry["num_accepted"] != work.cohort:
            raise RuntimeError(f"{entry['num_accepted']} of {work.cohort} updates counted")
    # Round 0 is the initial model, and round 1 warms up.
    times = [float(entry["committed_at"]) for entry in rounds[1:]]
    return [end - begin for begin, end in pairwise(times)]
