"""Runs that were cut off go on to the same bits, and the hooks are those of any Flower strategy."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord

from fedge.errors import CheckpointError
from fedge.messages import CONFIG, encode_request
from fedge.records import to_array_record
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint, CheckpointStore
from server.evaluation import CentralEvaluation
from server.events import EventLog, MetricsLog
from server.federation import RunSummary, run_federation
from server.model_update import ModelUpdate
from server.round_commit import RoundCommit
from server.settings import ServerConfig
from server.strategy import HybridStrategy
from tests.unit.server.fake_grid import (
    Answer,
    Asked,
    Client,
    FakeGrid,
    TinyTask,
    honest,
)
from tests.unit.server.scripted_rounds import (
    assert_learnt_from,
    configure,
    run,
    start_weights,
)


class Killed(BaseException):
    """Ends the process as far as a test can without ending the tests."""


RESUMABLE = {"num_rounds": 6, "cohort_size": 3, "deadline_s": 5.0}
FEDAVGM = {"server_optimizer": "fedavgm", "learning_rate": 0.7}


def resumable(run_dir: Path) -> ServerConfig:
    return configure(run_dir, RESUMABLE, aggregation=FEDAVGM)


def without_times(summary: RunSummary) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in ("committed_at", "round_s")}
        for line in summary.rounds
    ]


@pytest.mark.parametrize("instant", ["in a round", "after the commit", "before the commit"])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, instant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: dict[int, Client] = dict.fromkeys(range(1, 8), honest)
    whole = run(FakeGrid(clients), resumable(tmp_path / "whole"))
    folder = tmp_path / "killed"
    grid = FakeGrid(clients)

    def faults(operation: str) -> None:
        if operation == "pull" and grid.asked[-1][0] == 4:
            raise Killed

    def kill(*args: Any) -> None:
        if args[-1] and grid.asked and grid.asked[-1][0] == 4:
            raise Killed
        original(*args)

    with monkeypatch.context() as patch:
        if instant == "in a round":
            grid.faults = faults
        elif instant == "after the commit":
            original: Any = MetricsLog.append
            patch.setattr(MetricsLog, "append", kill)
        else:
            original = CheckpointStore.commit
            patch.setattr(CheckpointStore, "commit", kill)
        with pytest.raises(Killed):
            run(grid, resumable(folder))
    resumed = run(FakeGrid(clients), resumable(folder))
    assert resumed.resumed_from == (4 if instant == "after the commit" else 3)
    assert resumed.weights.tobytes() == whole.weights.tobytes()
    assert without_times(resumed) == without_times(whole)
    assert [line["round"] for line in resumed.rounds] == list(range(7))


def test_a_killed_run_begins_its_overlapped_refinement_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refine = {"trainer": "in-process", "mode": "overlapped", "margin": 1.0, "steps": 3}

    def config(name: str) -> ServerConfig:
        return configure(tmp_path / name, RESUMABLE, refine=refine)

    clients: dict[int, Client] = dict.fromkeys(range(1, 8), honest)
    whole = run(FakeGrid(clients), config("whole"))
    grid = FakeGrid(clients)

    def faults(operation: str) -> None:
        if operation == "pull" and grid.asked[-1][0] == 4:
            raise Killed

    grid.faults = faults
    with pytest.raises(Killed):
        run(grid, config("killed"))
    with caplog.at_level("INFO", "server.refine_step"):
        resumed = run(FakeGrid(clients), config("killed"))
    assert "after round 3 was lost with its process: begun again" in caplog.text
    assert resumed.weights.tobytes() == whole.weights.tobytes()
    details = [line["refinement_detail"] for line in whole.rounds]
    assert details[:2] == [None, None]
    assert {detail["staleness"] for detail in details[2:]} == {1}


def test_a_run_that_is_complete_does_nothing_more(tmp_path: Path) -> None:
    first = run(FakeGrid({1: honest}), configure(tmp_path))
    grid = FakeGrid({1: honest})
    again = run(grid, configure(tmp_path))
    assert grid.asked == []
    assert again.weights.tobytes() == first.weights.tobytes()


def test_another_model_or_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    run(FakeGrid({1: honest}), configure(tmp_path))
    with pytest.raises(CheckpointError, match="holds the run 'run'"):
        run(FakeGrid({1: honest}), configure(tmp_path, run_name="other"))

    class Wider(TinyTask):
        def build_model(self) -> Any:
            from torch import nn

            return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))

    with pytest.raises(CheckpointError, match="3 parameters in 2 tensors"):
        run_federation(FakeGrid({1: honest}), configure(tmp_path), task=Wider())


def make_strategy(run_dir: Path) -> HybridStrategy:
    config = configure(run_dir)
    trainer = LocalTrainer(TinyTask())
    state = Checkpoint("run", 0, trainer.layout, start_weights(), seed=3)
    events = EventLog(run_dir)
    commit = RoundCommit(
        CheckpointStore(run_dir / "checkpoints"),
        MetricsLog(run_dir),
        events,
        CentralEvaluation(trainer, TinyTask().cloud_data()),
    )
    update = ModelUpdate(config, trainer.layout)
    return HybridStrategy(
        config, state, update=update, reference=None, refine=None, commit=commit, events=events
    )


def test_the_hooks_are_those_of_any_flower_strategy(tmp_path: Path) -> None:
    strategy = make_strategy(tmp_path)
    grid = FakeGrid({1: honest, 2: honest})
    arrays = to_array_record(strategy.state.layout, strategy.state.weights)
    request = strategy._request(strategy.state.weights, 1)
    config = encode_request(request).config_records[CONFIG]
    messages = list(strategy.configure_train(1, arrays, config, grid))
    assert [message.metadata.dst_node_id for message in messages] == [1, 2]
    assert messages[0].content is not messages[1].content
    ids = list(grid.push_messages(messages))
    updated, metrics = strategy.aggregate_train(1, grid.pull_messages(ids))
    assert updated is not None
    assert metrics is not None
    assert metrics["num-accepted"] == 2
    ids = list(grid.push_messages(strategy.configure_evaluate(1, updated, config, grid)))
    evaluated = strategy.aggregate_evaluate(1, grid.pull_messages(ids))
    assert evaluated is not None
    assert evaluated["accuracy"] == pytest.approx(0.15)


def test_start_calls_what_a_flower_user_passes(tmp_path: Path) -> None:
    strategy = make_strategy(tmp_path)
    seen: list[Any] = []

    def client(asked: Asked) -> Answer:
        seen.append(asked.message.content.config_records[CONFIG]["mine"])
        return honest(asked)

    result = strategy.start(
        FakeGrid({1: client}),
        to_array_record(strategy.state.layout, strategy.state.weights),
        num_rounds=2,
        train_config=ConfigRecord({"mine": "yes"}),
        evaluate_fn=lambda round, arrays: seen.append((round, list(arrays))),
    )
    names = ["weight", "bias"]
    assert seen == ["yes", (1, names), "yes", (2, names)]
    assert result.train_metrics_clientapp[2]["num-accepted"] == 1
    assert "accuracy_test" in result.evaluate_metrics_serverapp[1]
    assert list(result.arrays) == names


def test_what_a_client_does_to_its_message_no_other_client_sees(tmp_path: Path) -> None:
    def spoils(asked: Asked) -> Answer:
        asked.message.content.config_records[CONFIG]["server-round"] = 99
        return None

    rounds = {"deadline_s": 0.2, "quorum": 0.5}
    summary = run(FakeGrid({1: spoils, 2: honest}), configure(tmp_path, rounds))
    assert_learnt_from(summary, [2])
