"""Runs in processes of their own, and going on after a cut."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.jobs import run_jobs, scratch_folder
from tests.unit.benchmarks.squares import Square, square


def test_each_job_runs_once_elsewhere_on_one_thread() -> None:
    found = run_jobs(square, [Square(3), Square(2)], num_processes=1)
    assert [(key, value["value"]) for key, value in found.items()] == [
        ("square-3", 9),
        ("square-2", 4),
    ]
    assert os.getpid() not in {value["process"] for value in found.values()}
    assert {value["threads"] for value in found.values()} == {1}
    assert all(value["seconds"] >= 0 for value in found.values())


def test_a_cut_benchmark_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    results = tmp_path / "kept" / "runs.jsonl"
    with pytest.raises(ValueError, match="no root"):
        run_jobs(square, [Square(2), Square(-1)], results=results, num_processes=1)
    (line,) = results.read_text().splitlines()
    assert json.loads(line)["key"] == "square-2"
    # A kill has cut the last line short; another benchmark's run is nobody's business.
    other = json.dumps({"key": "other", "value": 0})
    results.write_text(
        f'{json.dumps({"key": "square-2", "value": "kept"})}\n{other}\n{{"key": "squ'
    )
    found = run_jobs(square, [Square(2), Square(3)], results=results, num_processes=1)
    assert {key: value["value"] for key, value in found.items()} == {
        "square-2": "kept",
        "square-3": 9,
    }
    again = run_jobs(square, [Square(3)], results=results, num_processes=1)
    assert again["square-3"] == found["square-3"]


def test_a_scratch_folder_is_gone_afterwards() -> None:
    with scratch_folder() as folder:
        (folder / "file").write_text("x")
    assert not folder.exists()
