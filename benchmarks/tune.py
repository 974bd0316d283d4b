"""What the tuner is worth: begun far off, against the best of a full grid and random search.

Every federation runs through the server's own code. Costs are examples that were passed through
the model in training, real rounds and virtual federations together, with what virtual federations
scored counted like training; the cloud's evaluation of each round is left out for all alike.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.jobs import run_jobs, scratch_folder
from benchmarks.tasks.mnist_writers import NUM_TEST_A_ROUND, MnistWriters
from fedge.config import build
from fedge.rng import stream
from simulation.runner import simulate
from simulation.settings import SimulateConfig

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
EPOCHS, BATCHES = (1, 2), (10, 32)
START_EPOCHS, START_BATCH = 1, 10
FACTORS = {"low": 0.1, "high": 10.0}
SPACE: dict[str, Any] = {
    "train.learning_rate": {"low": RATES[0] / 10, "high": RATES[-1] * 10, "log": True},
    "train.local_epochs": list(EPOCHS),
    "train.batch_size": list(BATCHES),
}
SEEDS, NUM_ROUNDS, COHORT = range(3), 20, 50
QUICK_ROUNDS, QUICK_COHORT = 2, 4
NUM_RANDOM_SEARCHES = 1000


@dataclass(frozen=True)
class TuneRun:
    """One federation.

    Attributes:
        tuned: whether the tuner is on; the other values are then those of its start.
    """

    seed: int
    learning_rate: float
    local_epochs: int
    batch_size: int
    tuned: bool = False
    num_rounds: int = NUM_ROUNDS
    cohort: int = COHORT

    @property
    def key(self) -> str:
        """Name of the run."""
        kind = "tuned" if self.tuned else "fixed"
        values = f"rate-{self.learning_rate:g}/epochs-{self.local_epochs}/batch-{self.batch_size}"
        return f"{kind}/seed-{self.seed}/{values}/{self.num_rounds}-rounds-of-{self.cohort}"


def measure(
    *, quick: bool, results: Path | None = None, rounds: int | None = None
) -> dict[str, Any]:
    """Return how near the tuner comes to the best of the grid, and at what share of its cost."""
    num_rounds = rounds or (QUICK_ROUNDS if quick else NUM_ROUNDS)
    seeds = SEEDS[:1] if quick else SEEDS
    table = {}
    for seed in seeds:
        grid = plan_grid(seed, quick=quick, num_rounds=num_rounds)
        found = run_jobs(work, grid, results=results)
        best = max(grid, key=lambda run: found[run.key]["accuracy"])
        starts = plan_starts(best)
        tuned = run_jobs(work, list(starts.values()), results=results)
        entries = [found[run.key] for run in grid]
        table[str(seed)] = {
            "best": {"run": best.key, **found[best.key]},
            "grid": {run.key: found[run.key]["accuracy"] for run in grid},
            **{
                direction: _compare(tuned[run.key], entries, seed)
                for direction, run in starts.items()
            },
        }
    return {"setup": _setup(seeds, num_rounds, quick=quick), **_worst(table), "table": table}


def plan_grid(seed: int, *, quick: bool, num_rounds: int) -> list[TuneRun]:
    """Return every point of the grid."""
    axes = (RATES[3:5], EPOCHS[:1], BATCHES[:1]) if quick else (RATES, EPOCHS, BATCHES)
    cohort = QUICK_COHORT if quick else COHORT
    return [
        TuneRun(seed, rate, epochs, batch, num_rounds=num_rounds, cohort=cohort)
        for rate, epochs, batch in itertools.product(*axes)
    ]


def plan_starts(best: TuneRun) -> dict[str, TuneRun]:
    """Return tuned runs whose client rate begins ten times off, by direction."""
    return {
        direction: TuneRun(
            best.seed,
            best.learning_rate * factor,
            START_EPOCHS,
            START_BATCH,
            tuned=True,
            num_rounds=best.num_rounds,
            cohort=best.cohort,
        )
        for direction, factor in FACTORS.items()
    }


def work(run: TuneRun) -> dict[str, Any]:
    """Run one federation."""
    task = MnistWriters(seed=run.seed, num_test=NUM_TEST_A_ROUND)
    with scratch_folder() as folder:
        lines = simulate(config_of(run, task.num_clients, folder), task=task).rounds
        accuracy = task.accuracy(folder)
    chosen = [line["tuner"] for line in lines[1:] if "tuner" in line]
    epochs = [each["values"]["train.local_epochs"] for each in chosen]
    epochs = epochs or [run.local_epochs] * run.num_rounds
    asked = [line["num_selected"] for line in lines[1:]]
    size = fmean(len(task.client_data(i, task.num_clients)) for i in range(task.num_clients))
    result = {
        "accuracy": accuracy,
        "loss_gate": lines[-1]["loss_gate"],
        # Of the cohorts' expectation: which writers they were is not in the metrics.
        "passes": round(size * sum(e * n for e, n in zip(epochs, asked, strict=True))),
        "virtual_passes": sum(each["passes"] for each in chosen),
    }
    if run.tuned:
        result["rates"] = [float(f"{c['values']['train.learning_rate']:.3g}") for c in chosen]
        result["batches"] = [each["values"]["train.batch_size"] for each in chosen]
        result["epochs"] = epochs
    return result


def config_of(run: TuneRun, num_clients: int, folder: Path) -> SimulateConfig:
    """Return one run's configuration; what does not name the run is the product's default."""
    server: dict[str, Any] = {
        "run_dir": str(folder),
        "seed": run.seed,
        "rounds": {"num_rounds": run.num_rounds, "cohort_size": run.cohort, "deadline_s": 3600.0},
        "train": {
            "learning_rate": run.learning_rate,
            "local_epochs": run.local_epochs,
            "batch_size": run.batch_size,
        },
        "evaluate": {"every_rounds": 0},
    }
    if run.tuned:
        server["tuner"] = {"sampler": "tpe", "space": SPACE}
    tree = {
        "num_clients": num_clients,
        "holdout_fraction": 0.0,
        "server": server,
        "privacy": {"enabled": False},
        "engine": {"workers": 1},
    }
    return build(SimulateConfig, tree)


def _compare(tuned: dict[str, Any], grid: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    cost = tuned["passes"] + tuned["virtual_passes"]
    best = max(entry["accuracy"] for entry in grid)
    return {
        **tuned,
        "fraction_of_best": tuned["accuracy"] / best,
        "cost_fraction": cost / sum(entry["passes"] for entry in grid),
        "random_fraction_of_best": random_search(grid, cost, seed) / best,
    }


def random_search(grid: list[dict[str, Any]], budget: float, seed: int) -> float:
    """Return the mean test accuracy of random search over the grid with a budget of passes.

    Points are drawn without replacement, and run in full, as long as the budget pays for them; the
    first always runs. The one with the least loss on the gate set counts.
    """
    rng = stream(seed, "benchmark-random-search")
    found = []
    for _ in range(NUM_RANDOM_SEARCHES):
        order = rng.permutation(len(grid))
        tried, spent = [grid[order[0]]], grid[order[0]]["passes"]
        for at in order[1:]:
            if spent + grid[at]["passes"] > budget:
                break
            spent += grid[at]["passes"]
            tried.append(grid[at])
        found.append(min(tried, key=_gate_loss)["accuracy"])
    return fmean(found)


def _gate_loss(entry: dict[str, Any]) -> float:
    loss = entry["loss_gate"]
    return float("inf") if loss is None else float(loss)


def _worst(table: dict[str, Any]) -> dict[str, float]:
    """Return means over seeds, of the direction that comes off worse."""
    found = {}
    for key, worst in (("fraction_of_best", min), ("cost_fraction", max)):
        found[key] = worst(fmean(seed[name][key] for seed in table.values()) for name in FACTORS)
    key = "random_fraction_of_best"
    found[key] = max(fmean(seed[name][key] for seed in table.values()) for name in FACTORS)
    return found


def _setup(seeds: range, num_rounds: int, *, quick: bool) -> str:
    axes = "2 rates" if quick else f"rates {RATES}, local epochs {EPOCHS}, batch {BATCHES}"
    return (
        f"MNIST by writer, {QUICK_COHORT if quick else COHORT} writers a round, {num_rounds} "
        f"rounds, 600 proxy and 600 gate images, no DP, seeds {list(seeds)}. Grid: {axes}. The "
        f"tuner (defaults, tpe, rates {SPACE['train.learning_rate']['low']:g} to "
        f"{SPACE['train.learning_rate']['high']:g}) begins at the best point's rate times 0.1 and "
        f"times 10, {START_EPOCHS} epoch, batch {START_BATCH}; figures are means over seeds of the "
        "worse direction. Accuracy is on MNIST's 10,000 test images, best by test accuracy. Cost "
        "is training passes of examples, plus the tuner's virtual federations. Random search has "
        "the better of the two budgets and picks by the gate set."
    )
