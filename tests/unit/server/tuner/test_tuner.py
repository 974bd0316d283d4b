"""The tuner between rounds: what it chooses, remembers and leaves alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from fedge.config import build
from fedge.errors import CheckpointError
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint
from server.settings import ServerConfig
from server.tuner.search import search
from server.tuner.study import DATABASE, StudyLog
from server.tuner.tuner import Tuner
from tests.tiny_task import TinyTask

TASK = TinyTask()
RATE = "train.learning_rate"
SPACE = {RATE: {"low": 1e-3, "high": 10.0, "log": True}}


def configure(run_dir: Path, *, train: dict[str, Any] | None = None, **tuner: Any) -> ServerConfig:
    wanted = {
        "sampler": "tpe",
        "space": SPACE,
        "candidates": 4,
        "generations": 1,
        "virtual_rounds": 1,
        "clients": 3,
        "schedule": "interval",
        "every_rounds": 1,
        **tuner,
    }
    train = {"learning_rate": 0.002, "local_epochs": 1, "batch_size": 8, **(train or {})}
    return build(ServerConfig, {"run_dir": str(run_dir), "tuner": wanted, "train": train})


def make(config: ServerConfig) -> Tuner:
    config.run_dir.mkdir(exist_ok=True)
    layout = LocalTrainer(TASK).layout
    return Tuner(config, TASK, TASK.cloud_data(), layout, None, 3)


def begin(loss: float | None = 1.2) -> Checkpoint:
    trainer = LocalTrainer(TASK)
    metrics = {"round": 0, "loss_gate": loss}
    return Checkpoint("run", 0, trainer.layout, trainer.initial_weights(0), metrics=metrics)


def after(state: Checkpoint, tuner: Tuner, loss: float | None, **fields: Any) -> Checkpoint:
    """Return what a real round would commit."""
    metrics = {"round": state.round + 1, "loss_gate": loss, "applied": True, **tuner.report}
    weights = state.weights + np.float32(0.01)
    return replace(state, round=state.round + 1, weights=weights, metrics=metrics, **fields)


def rounds_of(config: ServerConfig) -> list[optuna.trial.FrozenTrial]:
    space = make(config)._space
    return StudyLog(config.run_dir, config.run_name, space).rounds()


def states(config: ServerConfig) -> list[str]:
    return [trial.state.name for trial in rounds_of(config)]


def test_a_rate_that_is_far_too_low_is_left_behind(tmp_path: Path) -> None:
    tuner = make(configure(tmp_path, candidates=8, generations=2, virtual_rounds=2))
    config, _ = tuner.next_round(begin())
    assert config.train.learning_rate > 0.02
    report = tuner.report["tuner"]
    assert report["values"] == {RATE: config.train.learning_rate}
    assert report["why"] == "best of the virtual federations"
    assert report["num_candidates"] == 12
    assert report["passes"] > 0
    assert config.train.digest != configure(tmp_path).train.digest


def test_each_round_is_told_by_how_much_the_gate_loss_fell(tmp_path: Path) -> None:
    config = configure(tmp_path)
    tuner, state = make(config), begin(1.2)
    for loss in (0.6, 0.9, None):
        tuner.next_round(state)
        state = after(state, tuner, loss)
    tuner.tell(state)
    assert states(config) == ["COMPLETE", "COMPLETE", "FAIL"]
    gains = [trial.value or 0.0 for trial in rounds_of(config)[:2]]
    np.testing.assert_allclose(gains, [np.log(1.2 / 0.6), np.log(0.6 / 0.9)])


def test_a_round_that_changed_nothing_tells_nothing(tmp_path: Path) -> None:
    config = configure(tmp_path)
    tuner, state = make(config), begin()
    tuner.next_round(state)
    committed = after(state, tuner, 0.6)
    tuner.tell(replace(committed, metrics={**committed.metrics, "applied": False}))
    assert states(config) == ["FAIL"]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("virtual_rounds", [0, 1])
def test_a_round_that_is_begun_again_gets_the_same_choice(
    tmp_path: Path, sampler: str, virtual_rounds: int
) -> None:
    config = configure(
        tmp_path, sampler=sampler, virtual_rounds=virtual_rounds, train={"learning_rate": 0.1}
    )
    tuner, state = make(config), begin()
    tuner.next_round(state)
    state = after(state, tuner, 0.6)
    chosen, _ = tuner.next_round(state)
    resumed = make(config)  # the server was killed in the round
    again, _ = resumed.next_round(state)
    assert again.train.digest == chosen.train.digest
    # The committed round is complete, the one that was cut off failed, its successor runs.
    assert states(config) == ["COMPLETE", "FAIL", "RUNNING"]
    assert resumed.report["tuner"]["trial"] == 2


def test_a_search_that_is_cut_off_ends_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*args: Any, **options: Any) -> None:
        search(*args, **options)
        raise Killed

    whole, _ = make(configure(tmp_path / "whole")).next_round(begin())
    config = configure(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr("server.tuner.searcher.search", kill)
        with pytest.raises(Killed):
            make(config).next_round(begin())
    resumed, _ = make(config).next_round(begin())
    assert resumed.train == whole.train


def test_a_kill_between_commit_and_tell_loses_no_outcome(tmp_path: Path) -> None:
    config = configure(tmp_path)
    tuner, state = make(config), begin(1.2)
    tuner.next_round(state)
    make(config).next_round(after(state, tuner, 0.6))
    assert states(config) == ["COMPLETE", "RUNNING"]


def run_rounds(config: ServerConfig, losses: list[float], **fields: Any) -> list[dict[str, Any]]:
    tuner, state, reports = make(config), begin(), []
    for loss in losses:
        tuner.next_round(state)
        reports.append(tuner.report["tuner"])
        state = after(state, tuner, loss, **fields)
    return reports


def test_searches_end_when_they_change_nothing_and_begin_again_when_it_gets_worse(
    tmp_path: Path,
) -> None:
    config = configure(tmp_path, space={RATE: [0.1]}, patience=2, train={"learning_rate": 0.1})
    reports = run_rounds(config, [1.0, 0.9, 0.8, 1.0, 0.9, 0.8])
    assert [each["searched"] for each in reports] == [True, True, False, False, True, False]
    assert reports[2]["why"] == "2 searches changed nothing"


def test_by_default_no_search_follows_the_first_while_real_rounds_lower_the_loss(
    tmp_path: Path,
) -> None:
    config = configure(tmp_path, schedule="stall", every_rounds=2)
    reports = run_rounds(config, [1.0, 0.9, 0.8, 0.8, 0.85, 0.8])
    assert [each["searched"] for each in reports] == [True, *[False] * 4, True]
    assert reports[4]["why"] == "real rounds still lower the gate set's loss"
    assert reports[5]["num_candidates"] == 3  # half of four, and the values in use
    rates = [each["values"][RATE] for each in reports]
    assert len(set(rates[:5])) == 1
    assert abs(np.log10(rates[5] / rates[4])) <= 0.6 + 1e-9  # 15 % of four decades


def test_no_search_begins_once_the_budget_is_spent_or_between_intervals(tmp_path: Path) -> None:
    reports = run_rounds(configure(tmp_path / "a", budget=1), [1.0, 0.9])
    assert [each["searched"] for each in reports] == [True, False]
    assert reports[1]["why"] == "the budget is spent"
    assert reports[1]["values"] == reports[0]["values"]
    reports = run_rounds(configure(tmp_path / "b", every_rounds=2), [1.0, 0.9, 0.8])
    assert [each["searched"] for each in reports] == [True, False, True]


COSTLY = {
    RATE: SPACE[RATE],
    "train.local_epochs": [1, 2, 4, 8],
    "train.batch_size": {"low": 2, "high": 20},
}


def test_once_devices_report_epsilon_no_round_costs_them_more(tmp_path: Path) -> None:
    config = configure(tmp_path, sampler="random", space=COSTLY, patience=0)
    reports = run_rounds(config, [1.0, 0.9, 0.8, 0.7], epsilon={1: 0.5})
    costs = [
        (each["values"]["train.batch_size"], each["values"]["train.local_epochs"])
        for each in reports
    ]
    assert len(set(costs)) == 1
    assert [each["private"] for each in reports] == [False, True, True, True]
    study = optuna.load_study(
        study_name=next(
            name
            for name in optuna.study.get_all_study_names(f"sqlite:///{tmp_path / DATABASE}")
            if "candidates" in name
        ),
        storage=f"sqlite:///{tmp_path / DATABASE}",
    )
    later = [trial for trial in study.trials if trial.user_attrs["round"] > 1]
    assert {trial.params["train.batch_size"] for trial in later} == {costs[0][0]}
    assert len({trial.params[RATE] for trial in later}) > 3


def test_devices_that_a_restart_made_the_server_forget_are_still_protected(tmp_path: Path) -> None:
    config = configure(tmp_path, sampler="random", space=COSTLY, patience=0)
    tuner, state = make(config), begin()
    tuner.next_round(state)
    state = after(state, tuner, 0.9, epsilon={1: 0.5})
    first = tuner.next_round(state)[0].train
    state = replace(after(state, tuner, 0.8), epsilon={})
    for _ in range(3):
        train = tuner.next_round(state)[0].train
        assert (train.batch_size, train.local_epochs) == (first.batch_size, first.local_epochs)
        state = after(state, tuner, 0.8)


def test_real_rounds_alone_teach_it_where_there_is_no_virtual_federation(tmp_path: Path) -> None:
    config = configure(tmp_path, virtual_rounds=0, patience=2)
    losses = [1.0, 0.3, 0.3, 0.3, 0.3]
    reports = run_rounds(config, losses)
    assert reports[0]["values"] == {RATE: 0.002}
    assert [each["passes"] for each in reports] == [0] * 5
    assert len({each["values"][RATE] for each in reports[:4]}) == 4
    # Round 2 brought most; two later ones did not beat it.
    assert reports[4]["why"] == "best of the real rounds"
    assert reports[4]["values"] == reports[1]["values"]


def test_the_study_of_another_space_or_run_is_another_study(tmp_path: Path) -> None:
    run_rounds(configure(tmp_path), [1.0])
    other = configure(tmp_path, space={RATE: [0.002, 0.1]})
    assert rounds_of(other) == []
    assert len(rounds_of(configure(tmp_path))) == 1


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_text("not a database at all, but long enough to be read as one")
    with pytest.raises(CheckpointError, match=r"tuner\.db: .*move the file away"):
        make(configure(tmp_path))
