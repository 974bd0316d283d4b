"""What a codec costs in accuracy: MNIST by writer, the same seeds with and without it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import run_jobs, scratch_folder
from benchmarks.tasks.mnist_writers import NUM_TEST_A_ROUND, MnistWriters
from fedge.config import build
from simulation.runner import simulate
from simulation.settings import SimulateConfig

BASELINE = "raw"
CODECS = {
    "int8": "int8",
    "topk5": "topk:0.05+int8+signs:0.5",
    "topk5_plain": "topk:0.05+f16",
    "topk1": "topk:0.01+int8+signs:0.5",
    "topk1_plain": "topk:0.01+f16",
}
SEEDS = range(2)
NUM_ROUNDS = 30
COHORT_SIZE = 50
QUICK_ROUNDS, QUICK_COHORT = 1, 4


@dataclass(frozen=True)
class CodecRun:
    """One federation: a codec and a seed."""

    codec: str
    seed: int
    num_rounds: int = NUM_ROUNDS
    cohort_size: int = COHORT_SIZE

    @property
    def key(self) -> str:
        """Name of the run."""
        return f"{self.codec}/seed-{self.seed}/{self.num_rounds}x{self.cohort_size}"


def measure(*, quick: bool, results: Path | None = None) -> dict[str, Any]:
    """Return the accuracy without a codec and what each codec loses, in points."""
    MnistWriters()  # says here, and not in a child process, that the data are missing
    runs = plan_runs(quick=quick)
    return summarize(runs, run_jobs(work, runs, results=results))


def plan_runs(*, quick: bool) -> list[CodecRun]:
    """Return every run, those without a codec among them."""
    specs = [BASELINE, *CODECS.values()]
    if quick:
        return [CodecRun(spec, 0, QUICK_ROUNDS, QUICK_COHORT) for spec in specs]
    return [CodecRun(spec, seed) for seed in SEEDS for spec in specs]


def work(run: CodecRun) -> dict[str, Any]:
    """Run one federation through the server's own code."""
    task = MnistWriters(seed=run.seed, num_test=NUM_TEST_A_ROUND)
    with scratch_folder() as folder:
        result = simulate(config_of(run, task.num_clients, folder), task=task)
        points = 100 * task.accuracy(folder)
    bits = [entry["uplink_bits"] for entry in result.rounds if entry.get("uplink_bits")]
    return {"points": points, "bits": statistics.fmean(bits)}


def config_of(run: CodecRun, num_clients: int, folder: Path) -> SimulateConfig:
    """Return plain federated averaging, the codec aside."""
    server = {
        "run_dir": str(folder),
        "seed": run.seed,
        "rounds": {
            "num_rounds": run.num_rounds,
            "cohort_size": run.cohort_size,
            "deadline_s": 3600.0,
        },
        "train": {"learning_rate": 0.1, "local_epochs": 1, "batch_size": 10},
        "aggregation": {"aggregator": "weighted-mean", "codec": run.codec},
        "evaluate": {"every_rounds": 0},
    }
    tree = {"num_clients": num_clients, "server": server, "privacy": {"enabled": False}}
    return build(SimulateConfig, tree)


def summarize(runs: Sequence[CodecRun], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds; a loss is against the same seed without a codec."""
    points = {(run.codec, run.seed): found[run.key]["points"] for run in runs}
    bits = {run.codec: found[run.key]["bits"] for run in runs}
    seeds = sorted({run.seed for run in runs})
    losses = {
        name: [points[BASELINE, seed] - points[spec, seed] for seed in seeds]
        for name, spec in CODECS.items()
    }
    num_rounds, cohort_size = runs[0].num_rounds, runs[0].cohort_size
    return {
        "setup": (
            f"MNIST by writer, 515 clients, {cohort_size} a round, {num_rounds} rounds, one local "
            f"epoch, batch 10, SGD 0.1, CNN of 114k parameters, weighted mean, no DP, seeds "
            f"{seeds}; codecs {CODECS}; test accuracy in points after the last round, on 10,000 "
            "images that decide nothing"
        ),
        "baseline_points": statistics.fmean(points[BASELINE, seed] for seed in seeds),
        **{f"{name}_loss_points": statistics.fmean(values) for name, values in losses.items()},
        "losses_by_seed": losses,
        "bits_per_parameter": bits,
    }
