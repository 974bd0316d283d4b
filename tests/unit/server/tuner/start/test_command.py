"""``fedge-server tune-start`` as a user meets it, and what a model is said to cost."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedge.cli import EXIT_INTERRUPTED, run_cli
from fedge.errors import ModelError
from fedge.settings import TaskConfig
from fedge.task import EdgeFiles
from fedge.tasks.digits import Digits
from server.cli import app
from server.convert import INTERPRETER_VARIABLE, find_converter
from server.tuner.start.price import Price, price_of
from tests.edge_process import wait_until

DIGITS = TaskConfig(options={"num_proxy": 20})


def arguments(options: dict[str, Any]) -> list[str]:
    settings = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    return ["tune-start", *settings]


def tune_start(options: dict[str, Any]) -> object:
    """Return the status that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        run_cli(app, arguments(options))
    return ended.value.code


def test_a_shipped_template_is_priced_as_it_is() -> None:
    price = price_of(DIGITS)
    assert 1e-7 < price.latency_s < 1e-2
    assert 20_000 < price.size_bytes < 100_000


@dataclass(frozen=True)
class AlwaysShips(Digits):
    """Ships the template of the default sizes with any."""

    def edge_files(self) -> EdgeFiles | None:
        return Digits().edge_files()


def test_a_shipped_template_of_other_sizes_is_not_taken_for_the_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.tuner.start.price.find_converter", lambda: None)
    name = f"{__name__}:AlwaysShips"
    assert price_of(TaskConfig(name)).size_bytes > 20_000
    with pytest.raises(ModelError, match="converter is not installed"):
        price_of(TaskConfig(name, {"width": 512}))


def test_the_command_prints_what_is_better_than_configured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.convert.find_converter", lambda: "here")
    monkeypatch.setattr("server.tuner.start.price.price_of", lambda _: Price(1e-6, 1))
    options = {
        "run_dir": tmp_path,
        "task.name": "tests.tiny_task:TinyTask",
        "train.learning_rate": 0.3,
        "train.local_epochs": 2,
        "train.batch_size": 4,
        "task.options.width": 1,
        "tuner.start.space.width": [1, 32],
        "tuner.clients": 3,
        "tuner.client_examples": 12,
    }
    assert tune_start(options) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "# the best",
        "[task.options]",
        "width = 32",
    ]


def test_ctrl_c_ends_the_command_and_the_converter_that_it_waits_for(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    converter = tmp_path / "python"
    converter.write_text(f"#!/bin/sh\necho $$ > {begun}\nexec sleep 600\n")
    converter.chmod(0o755)
    options = {"run_dir": tmp_path / "run", "tuner.start.space.width": [64, 512]}
    environment = {
        **os.environ,
        INTERPRETER_VARIABLE: str(converter),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.getcwd(),
    }
    command = [sys.executable, "-m", "server", *arguments(options)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: begun.exists() and begun.read_text(), "a conversion begins")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == EXIT_INTERRUPTED
    assert "Traceback" not in said
    child = Path(f"/proc/{begun.read_text().strip()}/cmdline")
    wait_until(lambda: not child.exists() or b"sleep" not in child.read_bytes(), "it is ended")
    assert not list(tmp_path.glob("fedge-price-*"))


@pytest.mark.slow
def test_a_wider_model_is_converted_and_costs_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_converter() is None:
        pytest.skip(f"no converter: run make convert-env, or set {INTERPRETER_VARIABLE}")
    options = {
        "run_dir": tmp_path,
        "tuner.start.space.width": [64, 512],
        "tuner.start.candidates": 2,
        "tuner.virtual_rounds": 2,
        "tuner.start.size_price": 5.0,
    }
    assert tune_start(options) == 0
    head, small, large, *_, chosen = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["width", "loss"]
    assert (small.split()[0], large.split()[0]) == ("64", "512")
    sizes = [int(line.split()[3].replace(",", "")) for line in (small, large)]
    assert sizes[1] > 4 * sizes[0]
    latencies = [float(line.split()[2]) for line in (small, large)]
    assert latencies[1] > latencies[0]
    assert chosen == "width = 64"


def test_without_a_converter_the_command_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.convert.find_converter", lambda: None)
    assert tune_start({"run_dir": tmp_path / "run", "tuner.start.space.width": [8, 64]}) == 2
    assert "make convert-env" in capsys.readouterr().err
