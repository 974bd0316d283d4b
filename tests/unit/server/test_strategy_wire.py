"""Rounds whose updates are late, and rounds whose weights travel as deltas."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from aggregation.codecs import make_codec
from fedge.messages import EncodedUpdate, Refusal, encode_refusal, encode_update
from fedge.params import Vector, vector_digest
from fedge.requests import DeltaRequest, decode_request
from server import round_exchange
from server.checkpoint import read_checkpoint
from tests.unit.server.fake_grid import Asked, FakeGrid, delta_of, honest, silent
from tests.unit.server.scripted_rounds import configure, run, start_weights


def test_a_late_update_counts_less_where_staleness_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_exchange, "LATE_POLL_INTERVAL_S", 0.0)
    grid = FakeGrid({1: honest, 2: honest, 3: silent})
    # Node 2 answers round 1 only when node 1 has been asked for round 2.
    grid.hold = lambda asked: asked.node == 2 and asked.round == 1 and (2, 1) not in grid.asked
    rounds = {"num_rounds": 3, "deadline_s": 1.0, "quorum": 0.3}
    summary = run(grid, configure(tmp_path, rounds, aggregation={"max_staleness": 2}))
    assert [line["num_late"] for line in summary.rounds] == [0, 0, 0, 1]
    assert [line["num_stale"] for line in summary.rounds] == [0, 0, 0, 1]
    # Node 2 has its part in round 3 and is not asked for another.
    assert grid.asked == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]
    before = read_checkpoint(tmp_path / "checkpoints" / "round-000002").weights
    late, fresh = 12.0 * 3**-0.5, 11.0
    expected = (late * delta_of(2, 1, 3) + fresh * delta_of(1, 3, 3)) / (late + fresh)
    np.testing.assert_allclose(summary.weights - before, expected, rtol=1e-4)


def test_an_evaluation_between_rounds_takes_no_late_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_exchange, "LATE_POLL_INTERVAL_S", 0.0)
    grid = FakeGrid({1: honest, 2: honest, 3: silent})
    looked_for: set[int] = set()

    def hold(asked: Asked) -> bool:
        # Node 2 answers round 1 while node 1 evaluates round 2, which takes it a moment.
        if asked.is_train:
            return asked.node == 2 and asked.round == 1 and 2 not in looked_for
        is_new = asked.round not in looked_for
        looked_for.add(asked.round)
        return is_new

    grid.hold = hold
    rounds = {"num_rounds": 3, "deadline_s": 0.5, "quorum": 0.3}
    config = configure(
        tmp_path,
        rounds,
        aggregation={"max_staleness": 2},
        evaluate={"every_rounds": 1, "deadline_s": 0.5},
    )
    summary = run(grid, config)
    assert [line["num_stale"] for line in summary.rounds] == [0, 0, 0, 1]
    assert [line["num_late"] for line in summary.rounds] == [0, 0, 0, 1]


def test_a_device_that_is_asked_anew_counts_with_its_fresh_update_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_exchange, "LATE_POLL_INTERVAL_S", 0.0)
    grid = FakeGrid({1: honest})
    # Its answer to round 1 comes after that round's deadline; there is nobody else to ask.
    started = time.monotonic()
    grid.hold = lambda asked: asked.round == 1 and time.monotonic() - started < 0.4
    rounds = {"num_rounds": 2, "deadline_s": 0.2, "quorum": 0.5}
    summary = run(grid, configure(tmp_path, rounds, aggregation={"max_staleness": 2}))
    assert [line["num_accepted"] for line in summary.rounds] == [0, 0, 1]
    assert [line["num_stale"] for line in summary.rounds] == [0, 0, 0]
    np.testing.assert_allclose(summary.weights - start_weights(), delta_of(1, 2, 3), rtol=1e-4)


class Holder:
    """A device that keeps its parent and takes deltas; it may lose what it holds."""

    def __init__(self) -> None:
        self.held: Vector | None = None
        self.got: list[str] = []

    def __call__(self, asked: Asked) -> RecordDict:
        request = decode_request(asked.message.content)
        if isinstance(request, DeltaRequest):
            self.got.append("delta")
            if self.held is None or vector_digest(self.held) != request.downlink.base:
                return encode_refusal(Refusal("stale-base", "lost"))
            codec, vector = make_codec(request.downlink.codec), self.held
            for payload in request.downlink.payloads:
                vector = vector + codec.decode(payload, request.layout)
            assert vector_digest(vector) == request.parent
        else:
            self.got.append("whole")
            vector = request.weights
        self.held = vector
        return encode_update(
            EncodedUpdate(
                round=request.round,
                parent=request.parent,
                layout_digest=request.layout.digest,
                codec="raw",
                payload=delta_of(asked.node, request.round, 3).tobytes(),
                num_examples=10.0,
                holds_parent=request.keep_parent,
            )
        )


def test_devices_that_hold_a_version_get_deltas_and_others_whole_weights(tmp_path: Path) -> None:
    holder, stock = Holder(), FakeGrid({1: silent}).clients[1]
    grid = FakeGrid({1: holder, 2: stock})
    rounds = {"num_rounds": 3, "deadline_s": 0.3, "quorum": 0.5}
    # A model of three parameters: only a payload shorter than 12 bytes goes out as a delta.
    config = configure(tmp_path, rounds, aggregation={"downlink_codec": "bf16"})
    summary = run(grid, config)
    assert holder.got == ["whole", "delta", "delta"]
    moved = sum(delta_of(1, round, 3) for round in (1, 2, 3))
    np.testing.assert_allclose(summary.weights - start_weights(), moved, rtol=1e-4)
    assert summary.rounds[-1]["num_accepted"] == 1


def test_a_device_that_lost_its_version_gets_whole_weights_in_the_same_round(
    tmp_path: Path,
) -> None:
    holder = Holder()

    def forgetful(asked: Asked) -> RecordDict:
        if asked.message.metadata.group_id == "2" and holder.got[-1] == "whole":
            holder.held = None
        return holder(asked)

    config = configure(
        tmp_path, {"num_rounds": 3, "deadline_s": 5.0}, aggregation={"downlink_codec": "bf16"}
    )
    summary = run(FakeGrid({1: forgetful}), config)
    assert holder.got == ["whole", "delta", "whole", "delta"]
    assert [line["num_accepted"] for line in summary.rounds] == [0, 1, 1, 1]
    assert summary.rounds[2]["refused"] == {}


def test_a_resumed_run_goes_on_from_what_devices_hold(tmp_path: Path) -> None:
    aggregation = {"downlink_codec": "bf16"}
    straight = run(
        FakeGrid({1: Holder()}),
        configure(tmp_path / "a", {"num_rounds": 4}, aggregation=aggregation),
    )
    run(
        FakeGrid({1: Holder()}),
        configure(tmp_path / "b", {"num_rounds": 2}, aggregation=aggregation),
    )
    resumed = run(
        FakeGrid({1: Holder()}),
        configure(tmp_path / "b", {"num_rounds": 4}, aggregation=aggregation),
    )
    assert resumed.weights.tobytes() == straight.weights.tobytes()


def test_a_device_that_never_takes_what_it_gets_is_asked_twice_a_round(tmp_path: Path) -> None:
    holder = Holder()

    def greedy(asked: Asked) -> RecordDict:
        answer = holder(asked)
        if asked.message.metadata.group_id == "1":
            return answer
        return encode_refusal(Refusal("stale-base", "more"))

    config = configure(
        tmp_path, {"num_rounds": 2, "deadline_s": 5.0}, aggregation={"downlink_codec": "bf16"}
    )
    started = time.monotonic()
    summary = run(FakeGrid({1: greedy}), config)
    assert time.monotonic() - started < 4.0
    assert holder.got == ["whole", "delta", "whole"]
    assert summary.rounds[2]["refused"] == {"stale-base": 1}
