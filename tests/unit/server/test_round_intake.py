from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from aggregation.gate import GateLimits, UpdateGate
from fedge.flower_internals import set_task_identity
from fedge.messages import Refusal, WeightsRequest, encode_refusal, encode_request
from fedge.params import Layout
from fedge.settings import Hyperparameters
from server import round_intake
from server.broadcast import Broadcast
from server.checkpoint import Checkpoint
from server.events import EventLog
from server.model_update import ModelUpdate
from server.round_intake import ClientErrors, RoundIntake
from server.settings import ServerConfig
from tests.unit.server.fake_grid import Asked, full_weights, update_of

STATE = Checkpoint("run", 0, Layout(("w",), ((3,),)), np.zeros(3, np.float32))


def ask(node: int) -> Message:
    set_task_identity(run_id=1, node_id=1)
    request = WeightsRequest("run", 1, 1, STATE.layout, STATE.weights, Hyperparameters())
    message = Message(encode_request(request), node, "train", group_id="1")
    message.metadata.__dict__["_message_id"] = f"to-{node}"
    return message


@pytest.fixture
def intake(tmp_path: Path) -> RoundIntake:
    gate = UpdateGate(STATE.layout, GateLimits())
    broadcast = Broadcast("", STATE.layout, seed=0)
    broadcast.advance(STATE.weights, {}, 1)
    return RoundIntake(STATE.layout, broadcast, "raw", 1, gate, ClientErrors(EventLog(tmp_path)))


@pytest.fixture
def update(tmp_path: Path) -> ModelUpdate:
    return ModelUpdate(ServerConfig(run_dir=tmp_path), STATE.layout)


def test_a_second_update_of_a_node_is_a_duplicate(intake: RoundIntake, update: ModelUpdate) -> None:
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        for _ in range(2):
            message = ask(4)
            intake.take(Message(update_of(Asked(message)), reply_to=message), aggregate)
        assert aggregate.num_updates == intake.num_accepted == 1
    assert intake.refused == {"duplicate": 1}


def test_a_reply_that_breaks_the_decoder_is_only_counted(
    intake: RoundIntake, update: ModelUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise OverflowError("int too large to convert to float")

    monkeypatch.setattr(round_intake, "decode_reply", broken)
    message = ask(4)
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        intake.take(Message(RecordDict({}), reply_to=message), aggregate)
    assert intake.refused == {"malformed": 1}


def test_refusals_are_counted_and_only_those_for_budget_are_remembered(
    intake: RoundIntake, update: ModelUpdate
) -> None:
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        for node, reason in ((4, "budget"), (5, "no-data"), (6, "x" * 500)):
            message = ask(node)
            intake.take(Message(encode_refusal(Refusal(reason, "")), reply_to=message), aggregate)
    assert intake.exhausted == {4}
    assert intake.refused == {"budget": 1, "no-data": 1, "x" * 40: 1}
    assert intake.num_accepted == 0


def test_an_update_in_another_codec_than_asked_for_is_refused(
    intake: RoundIntake, update: ModelUpdate
) -> None:
    message = ask(4)
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        reply = update_of(Asked(message), codec="int8", payload=b"1234")
        intake.take(Message(reply, reply_to=message), aggregate)
    assert intake.refused == {"codec": 1}


def test_the_cost_of_the_updates_is_their_mean(intake: RoundIntake, update: ModelUpdate) -> None:
    assert intake.cost.summary() == {"uplink_bits": None, "uplink_distortion": None}
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        for node, distortion in ((4, 0.25), (5, 0.75)):
            message = ask(node)
            reply = update_of(Asked(message), distortion=distortion)
            intake.take(Message(reply, reply_to=message), aggregate)
    assert intake.cost.summary() == {"uplink_bits": 32.0, "uplink_distortion": 0.5}


def test_a_node_that_lost_its_base_is_not_a_refusal(
    intake: RoundIntake, update: ModelUpdate
) -> None:
    message = ask(4)
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        content = encode_refusal(Refusal("stale-base", ""))
        intake.take(Message(content, reply_to=message), aggregate)
    assert intake.lost_base == [4]
    assert intake.refused == {}


def test_a_stock_clients_late_weights_are_refused(intake: RoundIntake, update: ModelUpdate) -> None:
    message = ask(4)
    message.metadata.__dict__["_group_id"] = "0"
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        intake.take(Message(full_weights(Asked(message)), reply_to=message), aggregate)
    assert intake.refused == {"round": 1}


def test_claims_of_distortion_that_no_sum_can_hold_do_not_break_the_round(
    intake: RoundIntake, update: ModelUpdate
) -> None:
    with update.open_aggregate(1, {}, num_clients=2) as aggregate:
        for node in (4, 5):
            message = ask(node)
            reply = update_of(Asked(message), distortion=1.7e308)
            intake.take(Message(reply, reply_to=message), aggregate)
    assert intake.num_accepted == 2
    assert intake.cost.summary()["uplink_distortion"] == 1e9


def test_a_node_that_always_lost_its_base_gets_whole_weights_once(
    intake: RoundIntake, update: ModelUpdate
) -> None:
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        for _ in range(3):
            message = ask(4)
            reply = encode_refusal(Refusal("stale-base", "lost"))
            intake.take(Message(reply, reply_to=message), aggregate)
    assert intake.lost_base == [4]
    assert intake.refused == {"stale-base": 2}


def test_a_stock_client_cannot_take_part_where_steps_count(
    intake: RoundIntake, update: ModelUpdate
) -> None:
    gate = UpdateGate(STATE.layout, GateLimits(needs_steps=True))
    gate.open_round(1, "")
    intake._gate = gate
    message = ask(4)
    with update.open_aggregate(1, {}, num_clients=1) as aggregate:
        intake.take(Message(full_weights(Asked(message)), reply_to=message), aggregate)
    assert intake.refused == {"steps": 1}
