"""Deadlines and over-selections before a run."""

import math
from pathlib import Path

import pytest

from fedge.config import build
from fedge.errors import ConfigError
from simulation.planning_table import numbers_of, planning_table
from simulation.round_planning import NUM_ROUNDS, plan_rounds
from simulation.settings import SimulateConfig
from simulation.tasks.synthetic import Synthetic

TASK = Synthetic(num_test=10, num_gate=10)


def config(tmp_path: Path, **devices: object) -> SimulateConfig:
    tree = {
        "num_clients": 1000,
        "devices": {"preset": "phones", **devices},
        "server": {"run_dir": str(tmp_path / "run"), "rounds": {"cohort_size": 20}},
    }
    return build(SimulateConfig, tree)


def test_every_choice_is_tried_in_every_round_and_nothing_is_written(tmp_path: Path) -> None:
    found = plan_rounds(config(tmp_path), TASK, [30.0, 90.0], [1.0, 1.5])
    choices = [(rows[0].over_selection, rows[0].deadline_s) for rows in found]
    assert choices == [(1.0, 30.0), (1.0, 90.0), (1.5, 30.0), (1.5, 90.0)]
    assert all(len(rows) == NUM_ROUNDS for rows in found)
    assert {row.num_asked for row in found[0]} == {20}
    assert {row.num_asked for row in found[2]} == {30}
    assert not (tmp_path / "run").exists()


def test_the_same_question_gets_the_same_answer(tmp_path: Path) -> None:
    alone = plan_rounds(config(tmp_path), TASK, [60.0], [1.0])
    again = plan_rounds(config(tmp_path), TASK, [60.0], [1.0])
    assert alone == again
    table = planning_table(alone)
    assert table.row_count == 1


@pytest.mark.parametrize(
    ("deadlines", "over_selections", "key"),
    [
        ([-1.0], [1.0], "--deadlines"),
        ([math.nan], [1.0], "--deadlines"),
        ([60.0], [0.5], "--over-selections"),
        ([60.0], [math.inf], "--over-selections"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    tmp_path: Path, deadlines: list[float], over_selections: list[float], key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        plan_rounds(config(tmp_path), TASK, deadlines, over_selections)


def test_devices_without_time_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"devices\.preset"):
        plan_rounds(config(tmp_path, preset="none"), TASK, [60.0], [1.0])


def test_numbers_of_an_option_are_read_or_refused() -> None:
    assert numbers_of("60, 1e3", "--deadlines") == [60.0, 1000.0]
    with pytest.raises(ConfigError, match=r"--deadlines.*'60,x'"):
        numbers_of("60,x", "--deadlines")
