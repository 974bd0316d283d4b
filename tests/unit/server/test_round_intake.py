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
from server.checkpoint import Checkpoint
from server.events import EventLog
from server.model_update import ModelUpdate
from server.round_intake import ClientErrors, RoundIntake
from server.settings import AggregationConfig
from tests.unit.server.fake_grid import Asked, update_of

STATE = Checkpoint("run", 0, Layout(("w",), ((3,),)), np.zeros(3, np.float32))


def ask(node: int) -> Message:
    set_task_identity(run_id=1, node_id=1)
    request = WeightsRequest("run", 1, 1, STATE.layout, STATE.weights, Hyperparameters())
    message = Message(encode_request(request), node, "train")
    message.metadata.__dict__["_message_id"] = f"to-{node}"
    return message


@pytest.fixture
def intake(tmp_path: Path) -> RoundIntake:
    gate = UpdateGate(STATE.layout, GateLimits())
    return RoundIntake(STATE, 1, gate, ClientErrors(EventLog(tmp_path)))


@pytest.fixture
def update(tmp_path: Path) -> ModelUpdate:
    return ModelUpdate(AggregationConfig(), STATE.layout, tmp_path)


def test_a_second_update_of_a_node_is_a_duplicate(intake: RoundIntake, update: ModelUpdate) -> None:
    with update.open_aggregate(1, {}) as aggregate:
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
    with update.open_aggregate(1, {}) as aggregate:
        intake.take(Message(RecordDict({}), reply_to=message), aggregate)
    assert intake.refused == {"malformed": 1}


def test_refusals_are_counted_and_only_those_for_budget_are_remembered(
    intake: RoundIntake, update: ModelUpdate
) -> None:
    with update.open_aggregate(1, {}) as aggregate:
        for node, reason in ((4, "budget"), (5, "no-data"), (6, "x" * 500)):
            message = ask(node)
            intake.take(Message(encode_refusal(Refusal(reason, "")), reply_to=message), aggregate)
    assert intake.exhausted == {4}
    assert intake.refused == {"budget": 1, "no-data": 1, "x" * 40: 1}
    assert intake.num_accepted == 0
