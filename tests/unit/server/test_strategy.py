"""Rounds over scripted clients: whatever they do, a round ends in time and harms nobody."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, RecordDict

from fedge.errors import DeadlineExceeded
from fedge.messages import ARRAYS, Refusal, encode_refusal
from fedge.records import to_array_record
from server import round_exchange
from server.checkpoint import CheckpointStore, read_checkpoint
from tests.unit.server.fake_grid import (
    Answer,
    Asked,
    Client,
    FakeGrid,
    full_weights,
    honest,
    silent,
    update_of,
)
from tests.unit.server.scripted_rounds import (
    assert_learnt_from,
    configure,
    mean_of,
    read_events,
    run,
    start_weights,
)


def test_when_all_answer_the_round_ends_at_once_with_their_weighted_mean(tmp_path: Path) -> None:
    began = time.monotonic()
    summary = run(FakeGrid(dict.fromkeys((1, 2, 3), honest)), configure(tmp_path))
    assert time.monotonic() - began < 4
    assert_learnt_from(summary, [1, 2, 3])
    line = summary.rounds[1]
    assert (line["num_selected"], line["num_accepted"], line["refused"]) == (3, 3, {})
    assert line["applied"] is True
    assert line["model_digest"] != summary.rounds[0]["model_digest"]


def nan(asked: Asked) -> RecordDict:
    return update_of(asked, np.full(3, np.nan, np.float32))


def short(asked: Asked) -> RecordDict:
    return update_of(asked, np.zeros(2, np.float32))


def other_layout(asked: Asked) -> RecordDict:
    return update_of(asked, layout_digest="0" * 64)


def wrong_round(asked: Asked) -> RecordDict:
    return update_of(asked, round=99)


def other_parent(asked: Asked) -> RecordDict:
    return update_of(asked, parent="f" * 64)


def too_many_examples(asked: Asked) -> RecordDict:
    return update_of(asked, num_examples=1e12)


def negative_examples(asked: Asked) -> RecordDict:
    return update_of(asked, num_examples=-10.0)


def failing(asked: Asked) -> Error:
    return Error(2, "Traceback ...\nValueError: node broke")


def wrong_shape_full(asked: Asked) -> RecordDict:
    content = full_weights(asked)
    content.array_records[ARRAYS] = to_array_record(
        type(asked.request.layout)(("weight", "bias"), ((1, 2), (2,))), np.zeros(4, np.float32)
    )
    return content


def empty(asked: Asked) -> RecordDict:
    return RecordDict({})


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (nan, "not-finite"),
        (short, "bytes"),
        (other_layout, "layout"),
        (wrong_round, "round"),
        (other_parent, "parent"),
        (too_many_examples, "examples"),
        (negative_examples, "examples"),
        (failing, "client-error"),
        (wrong_shape_full, "shape"),
        (empty, "malformed"),
    ],
)
def test_one_bad_client_is_counted_and_harms_nobody(
    tmp_path: Path, client: Client, reason: str
) -> None:
    summary = run(FakeGrid({1: honest, 2: client, 3: honest}), configure(tmp_path))
    assert_learnt_from(summary, [1, 3])
    assert summary.rounds[1]["refused"] == {reason: 1}
    assert summary.rounds[1]["num_accepted"] == 2


def test_the_norm_limit_refuses_what_is_too_large(tmp_path: Path) -> None:
    def large(asked: Asked) -> RecordDict:
        return update_of(asked, np.full(3, 100.0, np.float32))

    config = configure(tmp_path, aggregation={"max_norm": 10.0})
    summary = run(FakeGrid({1: honest, 2: large}), config)
    assert_learnt_from(summary, [1])
    assert summary.rounds[1]["refused"] == {"norm": 1}


def test_only_the_first_traceback_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = FakeGrid({1: honest, 2: failing, 3: failing})
    with caplog.at_level(logging.ERROR):
        run(grid, configure(tmp_path, {"num_rounds": 2, "quorum": 0.3}))
    shown = [record for record in caplog.records if "node broke" in record.getMessage()]
    assert len(shown) == 1
    events = [event for event in read_events(tmp_path) if event["kind"] == "client-error"]
    assert [event["detail"] for event in events] == ["Traceback ...\nValueError: node broke"]


def test_a_silent_client_costs_the_deadline_and_no_more(tmp_path: Path) -> None:
    grid = FakeGrid({1: honest, 2: silent, 3: honest})
    began = time.monotonic()
    summary = run(grid, configure(tmp_path, {"deadline_s": 0.3}))
    assert 0.3 <= time.monotonic() - began < 3
    assert_learnt_from(summary, [1, 3])


def test_without_quorum_the_round_is_committed_unchanged(tmp_path: Path) -> None:
    grid = FakeGrid({1: honest, 2: silent, 3: silent})
    summary = run(grid, configure(tmp_path, {"deadline_s": 0.2, "quorum": 0.6}))
    np.testing.assert_array_equal(summary.weights, start_weights())
    line = summary.rounds[1]
    assert (line["applied"], line["num_accepted"], line["num_selected"]) == (False, 1, 3)
    latest = CheckpointStore(tmp_path / "checkpoints").latest()
    assert latest is not None
    assert latest.round == 1


def test_over_selection_ends_the_round_when_the_cohort_is_in(tmp_path: Path) -> None:
    clients: dict[int, Client] = {node: honest if node < 4 else silent for node in range(1, 6)}
    rounds = {"cohort_size": 3, "over_selection": 1.6, "deadline_s": 20.0}
    began = time.monotonic()
    summary = run(FakeGrid(clients), configure(tmp_path, rounds))
    assert time.monotonic() - began < 5
    assert summary.rounds[1]["num_selected"] == 5
    assert_learnt_from(summary, [1, 2, 3])


def test_a_late_update_is_dropped_and_counted_and_its_client_left_alone_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_exchange, "LATE_POLL_INTERVAL_S", 0.0)
    grid = FakeGrid({1: honest, 2: honest, 3: silent})
    # Node 2 answers round 1 only when node 1 has been asked for round 2.
    grid.hold = lambda asked: asked.node == 2 and asked.round == 1 and (2, 1) not in grid.asked
    summary = run(grid, configure(tmp_path, {"num_rounds": 3, "deadline_s": 1.0, "quorum": 0.3}))
    assert [line["num_late"] for line in summary.rounds] == [0, 0, 0, 1]
    # Node 3 owes its answer all the time.
    assert grid.asked == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (3, 2)]
    first = read_checkpoint(tmp_path / "checkpoints" / "round-000001").weights
    np.testing.assert_allclose(first - start_weights(), mean_of([1]), rtol=1e-5)


def test_a_client_without_budget_is_not_asked_again(tmp_path: Path) -> None:
    def broke(asked: Asked) -> Answer:
        return encode_refusal(Refusal("budget", "ε is spent"))

    grid = FakeGrid({1: honest, 2: broke})
    summary = run(grid, configure(tmp_path, {"num_rounds": 3}))
    assert [asked for asked in grid.asked if asked[1] == 2] == [(1, 2)]
    assert [line["refused"] for line in summary.rounds[1:]] == [{"budget": 1}, {}, {}]
    resumed = FakeGrid({1: honest, 2: broke})
    run(resumed, configure(tmp_path, {"num_rounds": 4}))
    assert resumed.asked == [(4, 1)]


def test_when_nobody_has_budget_left_the_run_ends_and_says_why(tmp_path: Path) -> None:
    def broke(asked: Asked) -> Answer:
        return encode_refusal(Refusal("budget", "ε is spent"))

    began = time.monotonic()
    summary = run(FakeGrid(dict.fromkeys((1, 2), broke)), configure(tmp_path, {"num_rounds": 5}))
    assert time.monotonic() - began < 4
    assert "budget" in summary.reason
    assert len(summary.rounds) == 2
    last = read_events(tmp_path)[-1]
    assert (last["kind"], last["status"], last["rounds"]) == ("run-finished", "complete", 1)


def test_a_stock_flower_client_takes_part_with_full_weights(tmp_path: Path) -> None:
    summary = run(FakeGrid({1: honest, 2: full_weights}), configure(tmp_path))
    np.testing.assert_allclose(
        summary.weights - start_weights(), mean_of([1, 2]), rtol=1e-4, atol=1e-6
    )
    assert summary.rounds[1]["refused"] == {}


def test_a_reply_by_another_node_than_the_one_asked_is_dropped(tmp_path: Path) -> None:
    class Forging(FakeGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            messages = list(super().pull_messages(message_ids))
            for message in messages:
                if message.metadata.src_node_id == 2:
                    message.metadata.__dict__["_src_node_id"] = 3
            return messages

    summary = run(Forging(dict.fromkeys((1, 2, 3), honest)), configure(tmp_path))
    assert summary.rounds[1]["refused"] == {"wrong-node": 1}
    assert_learnt_from(summary, [1, 3])


def test_epsilon_is_kept_as_each_node_last_said(tmp_path: Path) -> None:
    def private(asked: Asked) -> RecordDict:
        return update_of(asked, epsilon=0.5 * asked.round)

    def nonsense(asked: Asked) -> RecordDict:
        return update_of(asked, epsilon=float("nan"))

    grid = FakeGrid({1: private, 2: nonsense, 3: honest})
    summary = run(grid, configure(tmp_path, {"num_rounds": 2}))
    assert [line["epsilon"] for line in summary.rounds] == [{}, {"1": 0.5}, {"1": 1.0}]


@pytest.mark.parametrize("operation", ["nodes", "push", "pull"])
def test_transport_errors_are_ridden_out(tmp_path: Path, operation: str) -> None:
    failures = iter([True, True, False, True])

    def faults(called: str) -> None:
        if called == operation and next(failures, False):
            raise ConnectionResetError("the SuperLink restarts")

    grid = FakeGrid(dict.fromkeys((1, 2, 3), honest), faults=faults)
    summary = run(grid, configure(tmp_path))
    assert_learnt_from(summary, [1, 2, 3])


def test_a_link_that_stays_down_ends_the_round_at_its_deadline(tmp_path: Path) -> None:
    def faults(called: str) -> None:
        if called != "nodes":
            raise ConnectionResetError("gone")

    began = time.monotonic()
    grid = FakeGrid(dict.fromkeys((1, 2), honest), faults=faults)
    summary = run(grid, configure(tmp_path, {"deadline_s": 0.3}))
    assert time.monotonic() - began < 3
    assert summary.rounds[1]["refused"] == {"not-sent": 2}
    np.testing.assert_array_equal(summary.weights, start_weights())


def test_too_few_devices_fail_the_run_by_name_and_it_can_be_resumed(tmp_path: Path) -> None:
    rounds = {"min_devices": 3, "wait_for_devices_s": 0.1}
    with pytest.raises(DeadlineExceeded, match="2 of 3 devices connected"):
        run(FakeGrid(dict.fromkeys((1, 2), honest)), configure(tmp_path, rounds))
    last = read_events(tmp_path)[-1]
    assert (last["kind"], last["status"]) == ("run-finished", "failed")
    assert "2 of 3 devices" in last["reason"]
    summary = run(FakeGrid(dict.fromkeys((1, 2, 3), honest)), configure(tmp_path, rounds))
    assert_learnt_from(summary, [1, 2, 3])


def test_devices_evaluate_every_so_many_rounds(tmp_path: Path) -> None:
    def private(asked: Asked) -> Answer:
        return honest(asked) if asked.is_train else encode_refusal(Refusal("private", "no"))

    clients: dict[int, Client] = {node: honest for node in range(1, 10)}
    grid = FakeGrid({**clients, 10: private})
    summary = run(grid, configure(tmp_path, {"num_rounds": 2}, evaluate={"every_rounds": 2}))
    assert [line["evaluation"] for line in summary.rounds[:2]] == [None, None]
    evaluation = summary.rounds[2]["evaluation"]
    assert evaluation["accuracy"] == pytest.approx(np.mean(range(1, 10)) / 10)
    assert evaluation["accuracy_worst_tenth"] == pytest.approx(0.1)
    assert evaluation["refused"] == {"private": 1}
    assert (evaluation["num_asked"], evaluation["num_clients"]) == (10, 9)


def test_silent_evaluators_delay_the_commit_by_their_deadline_at_most(tmp_path: Path) -> None:
    def only_trains(asked: Asked) -> Answer:
        return honest(asked) if asked.is_train else None

    sections = {"evaluate": {"every_rounds": 1, "deadline_s": 0.2}}
    began = time.monotonic()
    summary = run(FakeGrid({1: only_trains}), configure(tmp_path, **sections))
    assert time.monotonic() - began < 3
    assert summary.rounds[1]["evaluation"]["num_clients"] == 0
    assert_learnt_from(summary, [1])
