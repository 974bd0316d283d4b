"""Optuna's own plots, on request."""

from pathlib import Path

import pytest

from fedge.cli import run_cli
from fedge.config import build
from server.cli import app
from server.settings import ServerConfig
from server.tuner.search import Candidate
from server.tuner.space import Values, parse_space
from server.tuner.study import StudyLog

pytest.importorskip("matplotlib")


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as caught:
        run_cli(app, list(arguments))
    return caught.value.code


def test_the_command_draws_both_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = build(ServerConfig, {})
    space = parse_space({"train.learning_rate": [0.1, 1.0]}, config)
    study = StudyLog(tmp_path, "run", space)
    points: list[Values] = [{"train.learning_rate": rate} for rate in (0.1, 1.0)]
    for round, point in enumerate(points):
        number = study.open_round(point, {"round": round})
        study.close_round(number, 0.1 * round)
        study.add_search(round, [Candidate(p, True, gains={1: 0.5}, finished=True) for p in points])
    assert status_of("tune-report", str(tmp_path)) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(file.stat().st_size > 1000 for file in files)
    drawn = " ".join(file.name for file in files)
    assert "rounds" in drawn
    assert "candidates" in drawn
    assert "intermediate_values" in drawn


def test_a_folder_without_a_study_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("tune-report", str(tmp_path)) == 2
    assert "no tuner ran in this folder" in capsys.readouterr().err
