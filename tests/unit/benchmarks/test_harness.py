"""How a benchmark is asked for, and how it answers."""

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.harness import CANNOT_RUN, MODULES, USAGE, CannotRun, machine
from fedge.errors import ConfigError

ROOT = Path(__file__).parents[3]


def run_benchmarks(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def stand_in(
    monkeypatch: pytest.MonkeyPatch, measure: Callable[..., dict[str, Any]], *arguments: str
) -> None:
    """Put a function in place of the demo benchmark and its arguments on the command line."""
    module = types.ModuleType(MODULES["demo"])
    vars(module)["measure"] = measure
    monkeypatch.setitem(sys.modules, MODULES["demo"], module)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "demo", *arguments])


def test_without_a_name_it_lists_every_benchmark() -> None:
    result = run_benchmarks()
    assert result.returncode == 0
    assert result.stdout.split() == sorted(MODULES)
    assert "demo" in MODULES


def test_an_unknown_name_fails_and_says_what_there_is() -> None:
    result = run_benchmarks("speed-of-light")
    assert result.returncode == 2
    assert "invalid choice: 'speed-of-light'" in result.stderr
    assert "demo" in result.stderr
    assert result.stdout == ""


def test_a_result_is_one_json_object_on_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(*, quick: bool) -> dict[str, Any]:
        asked.append(quick)
        return {"setup": "here", "speed": 1.5}

    stand_in(monkeypatch, measure, "--quick")
    assert main() == 0
    assert asked == [True]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "name": "demo",
        "machine": machine(),
        "quick": True,
        "setup": "here",
        "speed": 1.5,
    }


def test_what_a_machine_lacks_is_said_and_ends_with_status_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*, quick: bool) -> dict[str, Any]:
        raise CannotRun("no such accelerator")

    stand_in(monkeypatch, measure)
    assert main() == CANNOT_RUN == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "cannot run here: no such accelerator\n"


def test_finished_runs_are_kept_by_benchmarks_that_have_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*, quick: bool, results: Path | None = None) -> dict[str, Any]:
        return {"kept_in": str(results)}

    stand_in(monkeypatch, measure, "--results", "runs.jsonl")
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["kept_in"] == "runs.jsonl"

    def measure_at_once(*, quick: bool) -> dict[str, Any]:
        return {}

    stand_in(monkeypatch, measure_at_once, "--results", "runs.jsonl")
    assert main() == 2
    assert "demo keeps no finished runs" in capsys.readouterr().err


def test_a_subset_and_rounds_reach_benchmarks_that_have_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*, quick: bool, only: list[str] | None = None, rounds: int = 50) -> dict[str, Any]:
        if rounds > 50:
            raise ConfigError("must be at most 50", key="--rounds")
        return {"only": only, "rounds": rounds}

    stand_in(monkeypatch, measure, "--only", "a,b", "--rounds", "3")
    assert main() == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["only"], found["rounds"]) == (["a", "b"], 3)
    stand_in(monkeypatch, measure, "--rounds", "51")
    assert main() == USAGE == 2
    assert capsys.readouterr().err == "--rounds: must be at most 50\n"

    def measure_at_once(*, quick: bool) -> dict[str, Any]:
        return {}

    for option, said in (("--only", "all of its runs"), ("--rounds", "fixed number of rounds")):
        stand_in(monkeypatch, measure_at_once, option, "1")
        assert main() == USAGE
        assert said in capsys.readouterr().err


def test_a_benchmark_that_is_broken_is_no_missing_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*, quick: bool) -> dict[str, Any]:
        raise ZeroDivisionError

    stand_in(monkeypatch, measure)
    with pytest.raises(ZeroDivisionError):
        main()


def test_the_machine_is_named_with_its_cores() -> None:
    assert machine().endswith(f", {os.cpu_count()} cores")
    assert len(machine()) > len(f", {os.cpu_count()} cores")


@pytest.mark.slow
def test_the_demo_benchmark_reports_what_each_half_adds() -> None:
    result = run_benchmarks("demo", "--quick", timeout_s=250)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["name"], found["quick"], found["machine"]) == ("demo", True, machine())
    assert "digits" in found["setup"]
    assert "2 rounds" in found["setup"]
    for key in ("accuracy_final", "accuracy_cloud_only", "accuracy_fedavg_only"):
        assert 0.1 < found[key] <= 1.0
    assert found["accuracy_final"] > found["accuracy_fedavg_only"]
    assert 7.5 < found["epsilon"] <= 8.0 * (1 + 1e-9)
