from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from edge_client.client_app import app, make_client_app, split_client_data
from edge_client.participant import Participant
from edge_client.replies import MemoryReplyStore
from fedge.errors import ConfigError, FedgeError
from fedge.flower_internals import set_task_identity
from fedge.messages import (
    CONFIG,
    Downlink,
    EncodedUpdate,
    Refusal,
    WeightsRequest,
    decode_reply,
    encode_request,
)
from fedge.params import Layout
from fedge.settings import Hyperparameters
from fedge.tasks.digits import Digits
from fedge.training.local import LocalTrainer

TRAINER = LocalTrainer(Digits())


def make_message(content: RecordDict, kind: str = "train") -> Message:
    set_task_identity(run_id=5, node_id=1)
    message = Message(content, 42, kind)
    message.metadata.__dict__["_message_id"] = "id"
    return message


def make_request(round: int = 1, layout: Layout | None = None) -> WeightsRequest:
    layout = layout or TRAINER.layout
    weights = np.zeros(layout.size, np.float32)
    weights[0] = round
    return WeightsRequest("run", round, 5, layout, weights, Hyperparameters())


def make_context(**node_config: int) -> Context:
    return Context(
        run_id=5,
        node_id=42,
        node_config={key.replace("_", "-"): value for key, value in node_config.items()},
        state=RecordDict(),
        run_config={},
    )


def reply_to(message: Message, context: Context) -> EncodedUpdate | Refusal:
    reply = app(message, context)
    decoded = decode_reply(reply.content, TRAINER.layout)
    assert isinstance(decoded, EncodedUpdate | Refusal)
    return decoded


def test_under_flowers_engine_budget_and_reply_live_in_the_context() -> None:
    context = make_context(partition_id=0, num_partitions=8)
    message = make_message(encode_request(make_request()))
    first = reply_to(message, context)
    assert isinstance(first, EncodedUpdate)
    assert first.epsilon is not None
    assert 0 < first.epsilon <= 8.0
    assert reply_to(message, context) == first
    second = reply_to(make_message(encode_request(make_request(2))), context)
    assert isinstance(second, EncodedUpdate)
    assert second.epsilon is not None
    assert second.epsilon > first.epsilon
    assert context.state.config_records["fedge"].keys() == {"ledger", "reply"}


def test_under_flowers_engine_error_feedback_lives_in_the_context_too() -> None:
    context = make_context(partition_id=0, num_partitions=8)
    requests = [replace(make_request(round), codec="topk:0.01+int8") for round in (1, 2)]
    messages = [make_message(encode_request(request)) for request in requests]
    updates = [reply_to(message, context) for message in messages]
    assert reply_to(messages[1], context) == updates[1]
    stored = context.state.config_records["fedge"]["reply"]
    assert isinstance(stored, bytes)
    memory = MemoryReplyStore(stored).state("run")
    assert memory["codec"] == "topk:0.01+int8"
    assert np.count_nonzero(memory["codec_state"]["residual"]) > TRAINER.layout.size / 2


def test_under_flowers_engine_no_earlier_model_is_held() -> None:
    context = make_context(partition_id=0, num_partitions=8)
    first = replace(make_request(1), keep_parent=True)
    update = reply_to(make_message(encode_request(first)), context)
    assert isinstance(update, EncodedUpdate)
    assert not update.holds_parent
    downlink = Downlink(first.parent, make_request(2).parent, "raw", ())
    content = encode_request(make_request(2), downlink)
    for kind in ("train", "evaluate"):
        refusal = reply_to(make_message(content, kind), context)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == ("stale-base" if kind == "train" else "private")


def test_evaluation_under_dp_is_a_refusal() -> None:
    context = make_context(partition_id=0, num_partitions=8)
    reply = app(make_message(encode_request(make_request()), "evaluate"), context)
    decoded = decode_reply(reply.content, TRAINER.layout)
    assert isinstance(decoded, Refusal)
    assert decoded.reason == "private"


def test_a_server_of_another_protocol_gets_a_named_refusal() -> None:
    content = encode_request(make_request())
    content.config_records[CONFIG]["protocol"] = 999
    refusal = reply_to(make_message(content), make_context(partition_id=0, num_partitions=8))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "protocol"
    assert "999" in refusal.detail


def test_a_model_of_another_task_gets_a_named_refusal() -> None:
    content = encode_request(make_request(layout=Layout(("w",), ((3,),))))
    refusal = reply_to(make_message(content), make_context(partition_id=0, num_partitions=8))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "task"


def test_a_node_without_partition_is_told_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"partition-id.*--node-config"):
        app(make_message(encode_request(make_request())), make_context())


def test_a_configured_task_is_read_from_the_servers_file(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('run_name = "x"\n[task]\nname = "no_such_module:Task"\n')
    context = make_context(partition_id=0, num_partitions=8)
    context.run_config["config"] = str(config)
    with pytest.raises(ConfigError, match="no_such_module"):
        app(make_message(encode_request(make_request())), context)


def test_the_text_of_a_foreign_error_stays_on_the_device() -> None:
    def broken(context: Context) -> Participant:
        raise ValueError("sample 0.123 is odd")

    with pytest.raises(FedgeError) as raised:
        make_client_app(broken)(
            make_message(RecordDict({CONFIG: ConfigRecord({})})), make_context()
        )
    assert "0.123" not in str(raised.value)
    assert "ValueError" in str(raised.value)
    assert raised.value.__suppress_context__


def test_the_splits_of_a_client_are_stable_and_disjoint() -> None:
    task = Digits()
    whole = task.client_data(1, 4)
    train = split_client_data(task, 1, 4, "train")
    holdout = split_client_data(task, 1, 4, "holdout")
    assert len(train) + len(holdout) == len(whole)
    assert 0 < len(holdout) < len(train)
    assert np.array_equal(train.inputs, split_client_data(task, 1, 4, "train").inputs)
    everything = split_client_data(task, 1, 4, "train", holdout_fraction=0.0)
    assert np.array_equal(everything.inputs, task.client_data(1, 4).inputs)
    together = np.concatenate([train.inputs, holdout.inputs])
    assert np.array_equal(np.sort(together, axis=0), np.sort(whole.inputs, axis=0))
