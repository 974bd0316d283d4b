"""The demo's federation in the in-process grid: what each half adds, over five seeds."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import progress
from fedge.task import load_task
from simulation.demo.baselines import measure_baselines
from simulation.demo.plan import DemoOptions, simulation_config
from simulation.runner import simulate

SEEDS = range(5)
QUICK_ROUNDS = 2


def measure(*, quick: bool) -> dict[str, Any]:
    """Return the means over seeds; test sets decide nothing."""
    seeds = SEEDS[:1] if quick else SEEDS
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedge-benchmark-") as folder:
        for seed in seeds:
            options = DemoOptions(name=f"seed-{seed}", seed=seed)
            if quick:
                options = DemoOptions(name="quick", seed=seed, num_rounds=QUICK_ROUNDS)
            rows.append(_measure_seed(options, Path(folder) / options.name))
            progress(f"seed {seed}: {rows[-1]}")
    means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    return {
        "setup": (
            f"digits, 4 clients by Dirichlet 0.3, 80 proxy images, {options.num_rounds} rounds, "
            f"DP-SGD to the planned epsilon at delta 1e-5, seeds {list(seeds)}; in-process grid, "
            "seeded noise; accuracy on a test set that decides nothing"
        ),
        **means,
        "epsilon": max(row["epsilon"] for row in rows),
        "table": rows,
    }


def _measure_seed(options: DemoOptions, folder: Path) -> dict[str, float]:
    config = simulation_config(options, folder / "both", refine=True)
    task = load_task(config.server.task.name, **config.server.task.options)
    both = simulate(config, task=task)
    alone = measure_baselines(options, folder / "alone")
    return {
        "accuracy_final": both.accuracy_test,
        "accuracy_cloud_only": alone.accuracy_cloud_only,
        "accuracy_fedavg_only": alone.accuracy_fedavg_only,
        "epsilon": max(both.epsilon.values()),
    }
