"""The command line of fedge-simulate: seeds, sweeps, Ray and the report."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fedge.errors import TaskError
from simulation import runner
from simulation.runner import SimulationResult
from simulation.settings import SimulateConfig
from tests.unit.simulation.report.run_folders import metrics_of, simulated, write_run
from tests.unit.simulation.test_cli import TINY, status_of

RATE = "server.train.learning_rate"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "simulate.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[SimulateConfig]:
    """Configurations that were run, by a simulation that only writes its metrics."""
    configs: list[SimulateConfig] = []

    def simulate(config: SimulateConfig, **more: Any) -> SimulationResult:
        configs.append(config)
        if config.server.train.learning_rate == 0.5:
            raise TaskError("the data hold NaN")
        rounds = [simulated(round) for round in range(3)]
        for metrics in rounds:
            more["on_round"](metrics)
        write_run(config.server.run_dir, rounds)
        return SimulationResult(config.server.run_dir, rounds)

    monkeypatch.setattr(runner, "simulate", simulate)
    return configs


def test_a_run_leaves_a_table_and_on_request_a_report(
    config: Path, ran: list[SimulateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--config", str(config), "--report") == 0
    folder = config.parent / "run"
    assert pq.read_table(folder / "metrics.parquet")["round"].to_pylist() == [0, 1, 2]
    assert "<!doctype html>" in (folder / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out.replace("\n", "")


def test_without_request_there_is_no_report(config: Path, ran: list[SimulateConfig]) -> None:
    assert status_of("--config", str(config)) == 0
    assert not (config.parent / "run" / "report.html").exists()


def test_seeds_and_sweeps_run_each_combination_and_end_with_one_table(
    config: Path, ran: list[SimulateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = f"{RATE}=0.1,0.2"
    assert status_of("--config", str(config), "--seeds", "2", "--sweep", sweep, "--report") == 0
    root = config.parent / "run"
    assert [(each.server.train.learning_rate, each.server.seed) for each in ran] == [
        (0.1, 0),
        (0.1, 1),
        (0.2, 0),
        (0.2, 1),
    ]
    assert pq.read_table(root / "results.parquet").num_rows == 12
    assert (root / f"{RATE}=0.1" / "seed-1" / "metrics.parquet").exists()
    page = (root / "report.html").read_text()
    assert f"{RATE}=0.1" in page
    assert f"{RATE}=0.2" in page
    printed = capsys.readouterr().out
    assert "0.3000 ± 0.0000" in printed


def test_a_sweep_with_a_failure_ends_with_status_2_and_says_how_many(
    config: Path, ran: list[SimulateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--config", str(config), "--sweep", f"{RATE}=0.5,0.25", "--report") == 2
    captured = capsys.readouterr()
    assert len(ran) == 2
    assert "error: 1 of 2 runs failed" in captured.err
    assert "the data hold NaN" in captured.err
    assert (config.parent / "run" / "report.html").exists()


def test_check_tells_how_many_runs_there_would_be(
    config: Path, ran: list[SimulateConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--config", str(config), "--check", "--seeds", "3") == 0
    assert "task tiny, 3 runs" in capsys.readouterr().out
    assert ran == []
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--sweep", "server.rounds.num_round=3,4"), "server.rounds.num_round: unknown key"),
        (("--sweep", "server.aggregation.aggregator=mean,nonsense"), "'nonsense'"),
        (("--seeds", "0"), "--seeds must be >= 1"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_one_line_before_anything_runs(
    config: Path,
    ran: list[SimulateConfig],
    arguments: tuple[str, str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of("--config", str(config), *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert ran == []


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "ray://head:10001", "6379"])
def test_ray_sets_the_address_of_the_cluster_as_text(
    config: Path, ran: list[SimulateConfig], address: str
) -> None:
    assert status_of("--config", str(config), "--ray", address) == 0
    assert ran[0].engine.ray == address


def test_report_compares_folders_into_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(tmp_path / name, [metrics_of(0), metrics_of(1)]) for name in ("a", "b")]
    output = tmp_path / "page.html"
    assert status_of("report", *map(str, folders), "--output", str(output)) == 0
    assert "2 runs" in output.read_text()
    assert "page.html" in capsys.readouterr().out.replace("\n", "")


def test_report_without_a_name_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "a", [metrics_of(0)])
    monkeypatch.chdir(tmp_path)
    assert status_of("report", str(folder)) == 0
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["missing", "bare", "empty"])
def test_report_on_no_run_is_one_line_that_names_the_folder(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bare").mkdir()
    write_run(tmp_path / "empty", [])
    assert status_of("report", str(tmp_path / name)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / name) in line


def test_report_takes_no_options_of_a_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--config", str(config), "report", "x") == 2
    assert "report takes no options of a run" in capsys.readouterr().err


def test_report_needs_a_folder() -> None:
    assert status_of("report") == 2


def test_help_names_every_option_and_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom simulation.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'flwr', 'pyarrow', 'matplotlib', 'jinja2', 'ray'} & set(sys.modules)\n"
        "sys.exit(','.join(sorted(heavy)) or 0)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    for word in ("--seeds", "--sweep", "--ray", "--report", "report"):
        assert word in found.stdout
