"""Reading run folders."""

import json
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from simulation.report.runs import read_rounds, read_runs
from tests.unit.simulation.report.run_folders import metrics_of, write_run


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "x" / "runs" / "a", [metrics_of(0)])
    two = write_run(tmp_path / "y" / "runs" / "a", [metrics_of(0)])
    assert [run.name for run in read_runs([one, two])] == ["x/runs/a", "y/runs/a"]
    assert [run.name for run in read_runs([two])] == ["a"]


def test_a_folder_given_twice_is_one_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [metrics_of(0)])
    assert len(read_runs([folder, tmp_path / "." / "a"])) == 1


def test_folders_of_seeds_are_one_run_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for seed in (10, 2):
        write_run(tmp_path / "a" / f"seed-{seed}", [metrics_of(0)])
    (tmp_path / "a" / "seed-3").mkdir()
    (tmp_path / "a" / "seed-old").mkdir()
    (run,) = read_runs([tmp_path / "a"])
    assert [seed.seed for seed in run.seeds] == [2, 10]
    assert run.is_group


def test_the_folder_of_a_sweep_stands_for_all_its_combinations(tmp_path: Path) -> None:
    for name in ("rate=0.1", "rate=0.2"):
        write_run(tmp_path / "sweep" / name / "seed-0", [metrics_of(0)])
    (tmp_path / "sweep" / "checkpoints").mkdir()
    assert [run.name for run in read_runs([tmp_path / "sweep"])] == ["rate=0.1", "rate=0.2"]


def test_a_line_cut_short_and_lines_that_are_no_round_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"round": 1, "v": "old"}, {"round": 0}, {"round": 1, "v": "new"}, {"round": True}, 3]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"round": 2, "acc')
    assert read_rounds(path) == [{"round": 0}, {"round": 1, "v": "new"}]


def test_seeds_that_end_apart_or_have_not_begun_are_told_of(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "seed-0", [metrics_of(0), metrics_of(1)])
    write_run(tmp_path / "a" / "seed-1", [metrics_of(0)])
    write_run(tmp_path / "a" / "seed-2", [])
    (run,) = read_runs([tmp_path / "a"])
    assert len(run.seeds) == 2
    assert "seed-2 has no committed round yet." in run.notes
    assert any("rounds 0 to 1" in note for note in run.notes)


def test_a_config_that_cannot_be_read_is_told_of_and_not_fatal(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [metrics_of(0)])
    (folder / "config.json").write_text("[1, 2")
    (run,) = read_runs([folder])
    assert run.config is None
    assert any("config.json cannot be read" in note for note in run.notes)


def test_what_holds_no_run_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing: there is no such folder"):
        read_runs([tmp_path / "missing"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match=r"bare holds no metrics\.jsonl"):
        read_runs([tmp_path / "bare"])
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(ConfigError, match=r"empty/metrics\.jsonl: no round is committed"):
        read_runs([empty])


def test_a_metrics_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot read .*metrics\.jsonl"):
        read_runs([tmp_path / "a"])
