"""What the simulate-niid benchmark runs, and that it runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulate_niid import TARGETS, config_of, measure, plan_runs, summarize
from benchmarks.tasks.mnist_writers import FOLDER
from fedge.errors import ConfigError
from server.checks import check_names

needs_mnist = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there")


def test_every_published_figure_has_a_run_of_its_setting(tmp_path: Path) -> None:
    runs = plan_runs(quick=False)
    assert {(run.partition, run.method) for run in runs} == {
        (partition, method) for partition, row in TARGETS.items() for method in row
    }
    assert len({run.key for run in runs}) == 8
    for run in runs:
        config = config_of(run, tmp_path)
        check_names(config.server)
        assert (config.num_clients, config.holdout_fraction) == (10, 0.0)
        assert not config.privacy.enabled
        rounds, train = config.server.rounds, config.server.train
        assert (rounds.num_rounds, rounds.cohort_size, train.local_epochs) == (50, 0, 10)
        assert (train.batch_size, train.learning_rate, train.momentum) == (64, 0.01, 0.9)
        assert train.weight_decay == 1e-5
        assert (train.client_term == "fedprox") == (run.method == "fedprox")


def test_a_subset_is_chosen_by_name_and_fewer_rounds_are_another_run() -> None:
    runs = plan_runs(quick=False, only=["scaffold-dirichlet", "fedavg-iid"], num_rounds=3)
    assert [run.name for run in runs] == ["fedavg-iid", "scaffold-dirichlet"]
    assert {run.num_rounds for run in runs} == {3}
    assert {run.key for run in runs}.isdisjoint(run.key for run in plan_runs(quick=False))
    with pytest.raises(ConfigError, match=r"--only: .*fedsgd-iid .* fedavg-iid"):
        plan_runs(quick=False, only=["fedsgd-iid"])
    for wrong in (0, 51):
        with pytest.raises(ConfigError, match="--rounds"):
            plan_runs(quick=False, num_rounds=wrong)


def test_only_whole_runs_are_held_against_the_published_figures(tmp_path: Path) -> None:
    runs = plan_runs(quick=False)
    found: dict[str, dict[str, Any]] = {
        run.key: {
            "points": TARGETS[run.partition][run.method]
            + (0.3 if run.method == "fednova" else -0.1),
            "best_round": 40,
            "by_round": [98.0],
        }
        for run in runs
    }
    result = summarize([replace(run, run_dir=tmp_path) for run in runs], found)
    assert result["worst_difference_points"] == 0.3
    assert result["worst_shortfall_points"] == 0.1
    assert result["table"]["fedprox-iid"]["difference_points"] == -0.1
    assert "SHORTER" not in result["setup"]
    short = plan_runs(quick=False, num_rounds=49)
    result = summarize(short, {run.key: next(iter(found.values())) for run in short})
    assert result["worst_difference_points"] is None
    assert result["setup"].startswith("SHORTER")
    assert "49 rounds" in result["setup"]


@pytest.mark.slow
@needs_mnist
def test_a_quick_subset_runs_and_is_kept(tmp_path: Path) -> None:
    results = tmp_path / "niid.jsonl"
    found = measure(quick=True, only=["scaffold-dirichlet"], results=results)
    assert list(found["table"]) == ["scaffold-dirichlet"]
    assert found["worst_difference_points"] is None
    assert len(results.read_text().splitlines()) == 1
    kept = tmp_path / "niid-runs" / "scaffold-dirichlet-1x1-600"
    assert (kept / "metrics.jsonl").is_file()
