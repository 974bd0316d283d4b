"""A million clients on this machine: memory, and what a round's time depends on."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import progress
from benchmarks.simulation_run import WatchedRun, watch_simulation

POPULATION = 1_000_000
SMALL_POPULATION = 20_000
COHORT = 10_000
COHORTS = (2_500, 5_000, 10_000, 20_000)
NUM_ROUNDS = 5
FROM_ROUND = 2
MEAN_EXAMPLES = 40
PLOT = Path(__file__).parent / "results" / "simulate-scale.svg"
_GIB = 1 << 30
_MIB = 1 << 20


def measure(*, quick: bool) -> dict[str, Any]:
    population, cohort = (2_000, 100) if quick else (POPULATION, COHORT)
    cohorts = (50, 100, 200) if quick else COHORTS
    small = 200 if quick else SMALL_POPULATION
    whole = _run(population, cohort, NUM_ROUNDS)
    seconds = {size: _run(population, size, 3) for size in cohorts}
    # Interleaved, since the machine is shared: a large and a small population in turn.
    pairs = [
        (_run(population, cohort, 3), _run(small, cohort, 3)) for _ in range(1 if quick else 3)
    ]
    slope, offset = _fit({size: _median(run) for size, run in seconds.items()})
    effect = statistics.median(_median(large) / _median(few) for large, few in pairs)
    if not quick:
        _plot({size: _median(run) for size, run in seconds.items()}, slope, offset)
    return {
        "setup": (
            f"fedge-simulate, population {population:,}, cohort {cohort:,}, {NUM_ROUNDS} rounds of "
            f"the synthetic task (MLP 64-64-10; clients of log-normal size, mean {MEAN_EXAMPLES}, "
            "with Dirichlet 0.3 labels of their own; batch 10, one epoch), seed 0, a worker a "
            "core; peak RSS is the sum over all processes, pages they share counted in each; "
            "growth from the end of round 2 to that of the last; slope and offset fitted to the "
            f"median round at cohorts of {', '.join(f'{c:,}' for c in cohorts)}; population "
            f"effect: round time at {population:,} over that at {small:,} clients, same cohort"
        ),
        "population": population,
        "cohort": cohort,
        "round_s": _median(whole),
        "clients_per_s": cohort / _median(whole),
        "peak_rss_gib": whole.peak_rss_bytes / _GIB,
        "rss_growth_mib": (whole.rss_bytes[-1] - whole.rss_bytes[FROM_ROUND - 1]) / _MIB,
        "slope_s_per_1000_clients": 1000 * slope,
        "offset_s": offset,
        "round_s_by_cohort": {str(size): _median(run) for size, run in seconds.items()},
        "population_effect": effect,
    }


def _run(population: int, cohort: int, num_rounds: int) -> WatchedRun:
    run = watch_simulation(
        {
            "num_clients": population,
            "holdout_fraction": 0.0,
            "privacy": {"enabled": False},
            "server": {
                "task": {
                    "name": "simulation.tasks.synthetic:Synthetic",
                    "options": {"alpha": 0.3, "mean_examples": MEAN_EXAMPLES},
                },
                "rounds": {"num_rounds": num_rounds, "cohort_size": cohort},
                "train": {"learning_rate": 0.1, "local_epochs": 1, "batch_size": 10},
                "evaluate": {"every_rounds": 0},
            },
        }
    )
    progress(
        f"population {population:,}, cohort {cohort:,}: {_median(run):.2f} s a round, peak "
        f"{run.peak_rss_bytes / _GIB:.2f} GiB"
    )
    return run


def _median(run: WatchedRun) -> float:
    return statistics.median(run.seconds)


def _fit(seconds: dict[int, float]) -> tuple[float, float]:
    """Return seconds a client and seconds a round besides, by least squares."""
    slope, offset = np.polyfit(list(seconds), list(seconds.values()), 1)
    return float(slope), float(offset)


def _plot(seconds: dict[int, float], slope: float, offset: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    sizes = np.array(list(seconds))
    axes.plot(sizes, list(seconds.values()), "o", label="median round")
    axes.plot(sizes, offset + slope * sizes, label=f"{1000 * slope:.3f} s a 1,000 clients")
    axes.set_xlabel("cohort")
    axes.set_ylabel("seconds a round")
    axes.set_title("A round of a population of a million")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(PLOT, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
