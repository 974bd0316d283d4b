"""What the tune benchmark runs and how it counts."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.tune import TuneRun, config_of, plan_grid, plan_starts, random_search


def test_the_starts_are_ten_times_off_and_within_the_space(tmp_path: Path) -> None:
    grid = plan_grid(0, quick=False, num_rounds=20)
    assert len({run.key for run in grid}) == len(grid) == 28
    for best in grid:
        starts = plan_starts(best)
        ratios = {name: run.learning_rate / best.learning_rate for name, run in starts.items()}
        assert ratios == pytest.approx({"low": 0.1, "high": 10.0})
        assert all(config_of(run, 515, tmp_path).server.tuner.sampler for run in starts.values())
    assert config_of(grid[0], 515, tmp_path).server.tuner.sampler == ""


def test_random_search_picks_by_the_gate_set_what_its_budget_pays_for() -> None:
    grid: list[dict[str, Any]] = [
        {"accuracy": 0.9, "loss_gate": 0.2, "passes": 10},
        {"accuracy": 0.5, "loss_gate": 1.0, "passes": 10},
        {"accuracy": 0.1, "loss_gate": None, "passes": 10},
    ]
    assert random_search(grid, 0, 1) == pytest.approx(0.5, abs=0.05)  # one at random
    assert random_search(grid, 25, 1) == pytest.approx((0.9 + 0.9 + 0.5) / 3, abs=0.05)
    assert random_search(grid, 30, 1) == pytest.approx(0.9)


def test_a_run_is_named_by_all_that_makes_it() -> None:
    runs = [
        TuneRun(0, 0.1, 1, 10),
        TuneRun(1, 0.1, 1, 10),
        TuneRun(0, 0.3, 1, 10),
        TuneRun(0, 0.1, 2, 10),
        TuneRun(0, 0.1, 1, 32),
        TuneRun(0, 0.1, 1, 10, tuned=True),
        TuneRun(0, 0.1, 1, 10, num_rounds=2),
        TuneRun(0, 0.1, 1, 10, cohort=4),
    ]
    assert len({run.key for run in runs}) == len(runs)
