"""What the poison benchmark runs, and that it runs."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import poison
from benchmarks.poison import (
    DEFAULT,
    DIGITS,
    PRIVATE_SEEDS,
    PoisonRun,
    compared,
    config_of,
    measure,
    plan_runs,
)
from server.checks import check_names
from simulation.attacks.methods import attack_names, check_attack


def test_every_method_meets_every_attack_on_five_seeds() -> None:
    runs = plan_runs(quick=False)
    assert len({run.key for run in runs}) == len(runs)
    counts = Counter((run.setting, run.method, run.attack) for run in runs)
    for setting in DIGITS:
        for method in compared():
            for attack in ["none", *attack_names()]:
                assert counts[setting, method, attack] == 5
        assert counts[f"{setting}-dp", DEFAULT, "scale"] == len(PRIVATE_SEEDS)
        assert counts[f"{setting}-dp", poison.BASELINE, "none"] == len(PRIVATE_SEEDS)


def test_every_run_can_be_configured(tmp_path: Path) -> None:
    for run in plan_runs(quick=False):
        config = config_of(run, 20, tmp_path)
        check_names(config.server)
        check_attack(config.attack)
        assert config.privacy.enabled == run.setting.endswith("-dp")
        assert config.attack.fraction == 0.2
        assert config.server.seed == run.seed


def test_a_method_or_an_attack_has_no_setting_of_its_own(tmp_path: Path) -> None:
    one = config_of(PoisonRun("digits-iid", "median", "scale", 0), 20, tmp_path)
    other = config_of(PoisonRun("digits-iid", "krum", "alie", 0), 20, tmp_path)
    assert one.server.train == other.server.train
    assert one.server.rounds == other.server.rounds


@pytest.mark.slow
def test_a_quick_run_has_every_key_and_is_kept(tmp_path: Path) -> None:
    results = tmp_path / "runs.jsonl"
    found = measure(quick=True, results=results)
    keys = {"worst_iid_points", "worst_noniid_points", "fltrust_iid_points"}
    assert keys | {"fltrust_noniid_points", "table", "setup"} <= found.keys()
    assert isinstance(found["worst_iid_points"], float)
    assert set(found["table"]) == set(DIGITS)
    kept = [json.loads(line) for line in results.read_text().splitlines()]
    assert {entry["key"] for entry in kept} == {run.key for run in plan_runs(quick=True)}
    assert measure(quick=True, results=results) == found
