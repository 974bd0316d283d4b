"""What the codec-accuracy benchmark runs, and that it runs."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.codec_accuracy import CODECS, config_of, measure, plan_runs, summarize
from benchmarks.tasks.mnist_writers import FOLDER

KEYS = {"baseline_points", "int8_loss_points", "topk5_loss_points", "topk1_loss_points"}


def test_every_codec_meets_the_same_seeds_as_the_baseline(tmp_path: Path) -> None:
    runs = plan_runs(quick=False)
    seeds = {spec: {run.seed for run in runs if run.codec == spec} for spec in CODECS.values()}
    baseline = {run.seed for run in runs if run.codec == "raw"}
    assert len(baseline) >= 2
    assert set(map(frozenset, seeds.values())) == {frozenset(baseline)}
    assert len({run.key for run in runs}) == len(runs)
    configs = {run: config_of(run, 515, tmp_path) for run in runs}
    assert {config.server.rounds.cohort_size for config in configs.values()} == {50}
    assert {config.server.rounds.num_rounds for config in configs.values()} == {30}
    assert all(config.server.aggregation.codec == run.codec for run, config in configs.items())


def test_a_loss_is_the_mean_difference_to_the_same_seed() -> None:
    runs = plan_runs(quick=False)
    found: dict[str, dict[str, Any]] = {
        run.key: {"points": 90.0 + run.seed - (run.codec != "raw"), "bits": 8.0} for run in runs
    }
    result = summarize(runs, found)
    assert result["baseline_points"] == 90.5  # the mean of seeds 0 and 1
    assert {result[key] for key in KEYS - {"baseline_points"}} == {1.0}


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} is not there")
def test_a_quick_run_has_every_key() -> None:
    found = measure(quick=True)
    assert found.keys() >= KEYS
    assert found["bits_per_parameter"]["raw"] == 32.0
    assert found["bits_per_parameter"]["int8"] < 8.5
