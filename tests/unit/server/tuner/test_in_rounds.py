"""The strategy's rounds with a tuner: what devices are asked, and what is committed."""

from pathlib import Path
from typing import Any

import pytest

from fedge.settings import Hyperparameters
from server.settings import ServerConfig
from tests.unit.server.fake_grid import Answer, Asked, Client, FakeGrid, honest
from tests.unit.server.scripted_rounds import configure, run

SPACE = {"train.learning_rate": {"low": 1e-3, "high": 1.0, "log": True}, "rounds.cohort_size": [2]}
TUNER = {"sampler": "random", "candidates": 3, "virtual_rounds": 1, "clients": 2, "patience": 0}


def tuned(run_dir: Path) -> ServerConfig:
    rounds = {"num_rounds": 3, "cohort_size": 2}
    return configure(run_dir, rounds, tuner={**TUNER, "space": SPACE})


class Killed(BaseException):
    """Ends the process as far as a test can without ending the tests."""


def test_devices_get_what_the_tuner_chose_and_a_resumed_round_gets_it_again(
    tmp_path: Path,
) -> None:
    asked: dict[int, list[Hyperparameters]] = {}

    def client(message: Asked) -> Answer:
        asked.setdefault(message.round, []).append(message.request.hyper)
        return honest(message)

    clients: dict[int, Client] = dict.fromkeys(range(1, 5), client)
    grid = FakeGrid(clients)

    def faults(operation: str) -> None:
        if operation == "pull" and grid.asked[-1][0] == 2:
            raise Killed

    grid.faults = faults
    with pytest.raises(Killed):
        run(grid, tuned(tmp_path))
    summary = run(FakeGrid(clients), tuned(tmp_path))
    assert summary.resumed_from == 1
    assert [len(asked[round]) for round in (1, 2, 3)] == [2, 4, 2]
    assert all(len({hyper.digest for hyper in hypers}) == 1 for hypers in asked.values())
    reports: list[dict[str, Any]] = [line["tuner"] for line in summary.rounds[1:]]
    rates = [report["values"]["train.learning_rate"] for report in reports]
    assert rates == [asked[round][0].learning_rate for round in (1, 2, 3)]
    assert all(report["why"] for report in reports)


def test_without_a_tuner_nothing_is_said_of_it(tmp_path: Path) -> None:
    summary = run(FakeGrid({1: honest}), configure(tmp_path))
    assert all("tuner" not in line for line in summary.rounds)
    assert not (tmp_path / "tuner.db").exists()
