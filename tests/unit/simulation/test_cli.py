"""The command line of fedge-simulate."""

import re
from pathlib import Path

import pytest

from fedge.cli import run_cli
from simulation.cli import app
from simulation.jsonl import read_jsonl

TINY = """
num_clients = 2
[server]
run_dir = "run"
[server.task]
name = "tests.tiny_task:TinyTask"
[server.rounds]
num_rounds = 2
min_devices = 2
poll_interval_s = 0.01
[privacy]
enabled = false
"""


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        run_cli(app, list(arguments))
    return caught.value.code


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "simulate.toml"
    path.write_text(TINY)
    return path


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    printed = capsys.readouterr().out
    for option in ("--config", "--set", "--check"):
        assert option in printed


def test_check_says_that_a_configuration_is_fine_and_makes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--config", str(config), "--check") == 0
    assert re.search(r"configuration is (fine|good): task tiny", capsys.readouterr().out)
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("server.rounds.num_round=3", "server.rounds.num_round: unknown key"),
        ("attack.name=sing", "attack.name: must be one of none, alie"),
        ("attack.fraction=1.0", "attack.fraction: must be >= 0 and < 1"),
        ("num_clients=0", "num_clients: must be >= 1, got 0"),
        ("privacy.epsilon=none", "privacy.epsilon: must be a number, got 'none'"),
        ("server.task.name=nothing:here", "task.name: 'nothing:here' cannot be loaded"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key_and_status_2(
    config: Path, override: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--config", str(config), "--set", override) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_run_ends_with_a_table_of_its_rounds(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("--config", str(config)) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    lines = read_jsonl(config.parent / "run" / "metrics.jsonl")
    assert [line["round"] for line in lines] == [0, 1, 2]
    for line in lines:
        cells = [str(line["round"]), f"{line['accuracy_test']:.4f}", f"{line['loss_test']:.4f}"]
        assert any(set(cells) <= set(row) for row in rows), printed
    assert sum("2/2" in row for row in rows) == 2
    assert "metrics.jsonl" in printed.replace("\n", "")
