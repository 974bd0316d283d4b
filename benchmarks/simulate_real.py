"""Simulation against deployment: the same federation in one process and as real processes.

Weights, data and settings are the same. Batches are not: a device draws them from the operating
system's entropy. So curves agree within the noise of that draw, which the seeds estimate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.deployment import check_converter, deploy
from benchmarks.jobs import run_jobs, scratch_folder
from fedge.config import build
from fedge.task import Task, load_task
from simulation.runner import simulate
from simulation.settings import SimulateConfig

DEPLOYED, SIMULATED = "deployed", "simulated"
NUM_CLIENTS = 8
NUM_ROUNDS, QUICK_ROUNDS = 20, 2
LAST_ROUNDS = 5
SEEDS = range(3)


@dataclass(frozen=True)
class Setting:
    """One task and how its clients train.

    Attributes:
        reached: accuracy, in points, that both curves must come to.
    """

    task: str
    options: dict[str, Any] = field(hash=False)
    train: dict[str, Any] = field(hash=False)
    reached: float


SETTINGS = {
    "mnist-writers": Setting(
        "benchmarks.tasks.mnist_writers:MnistWriters",
        {"writers_a_client": 8, "num_test": 5000},
        {"learning_rate": 0.1, "local_epochs": 1, "batch_size": 10},
        reached=90.0,
    ),
    "speakers": Setting(
        "benchmarks.tasks.speakers:Speakers",
        {"max_examples": 2000, "num_test": 5000},
        {"learning_rate": 0.5, "local_epochs": 2, "batch_size": 32},
        reached=30.0,
    ),
}


@dataclass(frozen=True)
class RealRun:
    """One federation: a key of `SETTINGS`, ``deployed`` or ``simulated``, and a seed."""

    setting: str
    how: str
    seed: int
    num_rounds: int = NUM_ROUNDS

    @property
    def key(self) -> str:
        """Name of the run."""
        return f"{self.setting}/{self.how}/seed-{self.seed}/{self.num_rounds}"


def measure(*, quick: bool, results: Path | None = None) -> dict[str, Any]:
    """Return both accuracies of each task, and the larger of the differences, in points."""
    runs = plan_runs(quick=quick)
    for run in runs:  # says here, and not in a child process, what is missing
        check_converter(_task_of(run))
    # One after another: a deployment has the machine's cores to itself.
    return summarize(runs, run_jobs(work, runs, results=results, num_processes=1))


def plan_runs(*, quick: bool) -> list[RealRun]:
    """Return every run; each deployed one has a simulated one with the same seed."""
    seeds = SEEDS[:1] if quick else SEEDS
    num_rounds = QUICK_ROUNDS if quick else NUM_ROUNDS
    return [
        RealRun(setting, how, seed, num_rounds)
        for seed in seeds
        for setting in SETTINGS
        for how in (DEPLOYED, SIMULATED)
    ]


def work(run: RealRun) -> dict[str, Any]:
    """Run one federation and return its accuracies on the test share, round 0 first."""
    task = _task_of(run)
    federation = federation_of(run)
    with scratch_folder() as folder:
        if run.how == DEPLOYED:
            rounds = deploy(task, federation, NUM_CLIENTS, folder)
        else:
            tree = {
                "num_clients": NUM_CLIENTS,
                "holdout_fraction": 0.0,
                "server": {**federation, "run_dir": str(folder)},
                "privacy": {"enabled": False},
            }
            rounds = simulate(build(SimulateConfig, tree), task=task).rounds
    return {"by_round": [100 * entry["accuracy_test"] for entry in rounds]}


def federation_of(run: RealRun) -> dict[str, Any]:
    """Return what deployment and simulation have in common; the rest is the product's default."""
    setting = SETTINGS[run.setting]
    return {
        "run_name": run.key.replace("/", "-"),
        "seed": run.seed,
        "task": {"name": setting.task, "options": {**setting.options, "seed": run.seed}},
        "rounds": {"num_rounds": run.num_rounds, "deadline_s": 300.0},
        "train": setting.train,
        "evaluate": {"every_rounds": 0},
    }


def _task_of(run: RealRun) -> Task:
    section = federation_of(run)["task"]
    return load_task(section["name"], **section["options"])


def summarize(runs: Sequence[RealRun], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over seeds; a task's difference is of the means over its last rounds."""
    curves = {run: found[run.key]["by_round"] for run in runs}
    table = {name: _compare(name, curves) for name in SETTINGS}
    return {
        "setup": _setup(runs),
        "accuracy_deployed": {name: row[DEPLOYED]["points"] for name, row in table.items()},
        "accuracy_simulated": {name: row[SIMULATED]["points"] for name, row in table.items()},
        "difference_points": max(abs(row["difference_points"]) for row in table.values()),
        "both_reached": all(row["both_reached"] for row in table.values()),
        "table": table,
    }


def _compare(name: str, curves: Mapping[RealRun, Sequence[float]]) -> dict[str, Any]:
    """Return one task's row: its curves, the difference, and that difference's noise."""
    by_seed = {
        how: [curve for run, curve in curves.items() if (run.setting, run.how) == (name, how)]
        for how in (DEPLOYED, SIMULATED)
    }
    means = {
        how: [statistics.fmean(at) for at in zip(*some, strict=True)]
        for how, some in by_seed.items()
    }
    gaps = [
        _last(one) - _last(other)
        for one, other in zip(by_seed[DEPLOYED], by_seed[SIMULATED], strict=True)
    ]
    apart = [abs(one - other) for one, other in zip(*means.values(), strict=True)][1:]
    reached = SETTINGS[name].reached
    return {
        **{
            how: {"points": _last(mean), "first_round_at": _first_at(mean, reached), "curve": mean}
            for how, mean in means.items()
        },
        "reached_points": reached,
        "both_reached": all(_last(mean) >= reached for mean in means.values()),
        "difference_points": statistics.fmean(gaps),
        "differences_by_seed": gaps,
        # Both runs of a pair differ in their batches alone, so their spread is that noise.
        "standard_error_points": (
            statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
        ),
        "mean_absolute_difference_points": statistics.fmean(apart),
    }


def _last(curve: Sequence[float]) -> float:
    return statistics.fmean(curve[1:][-LAST_ROUNDS:])


def _first_at(curve: Sequence[float], points: float) -> int | None:
    """Return the first round that came to an accuracy; None if none did."""
    return next((round for round, value in enumerate(curve) if value >= points), None)


def _setup(runs: Sequence[RealRun]) -> str:
    settings = "; ".join(
        f"{name}: {setting.options}, {setting.train}, stated accuracy {setting.reached:g}"
        for name, setting in SETTINGS.items()
    )
    return (
        f"{NUM_CLIENTS} devices as processes on loopback against {NUM_CLIENTS} simulated clients "
        f"with the same data, weights and settings, no DP, {runs[0].num_rounds} rounds, seeds "
        f"{sorted({run.seed for run in runs})}; {settings}; accuracy in points on a test set that "
        f"decides nothing, mean over the last {LAST_ROUNDS} rounds; devices draw batches from the "
        "system's entropy"
    )
