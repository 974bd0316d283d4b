from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import FedgeError, ProtocolMismatch, TransportError, UpdateRejected
from fedge.messages import (
    PROTOCOL_VERSION,
    EncodedUpdate,
    Evaluation,
    FullWeights,
    Refusal,
    WeightsRequest,
    decode_evaluation,
    decode_reply,
    decode_request,
    encode_evaluation,
    encode_refusal,
    encode_request,
    encode_update,
)
from fedge.params import Layout, vector_digest
from fedge.records import to_array_record
from fedge.settings import Hyperparameters

LAYOUT = Layout(("weight", "bias"), ((2, 2), (2,)))
WEIGHTS = np.arange(6, dtype=np.float32)
REQUEST = WeightsRequest(
    run_name="spring",
    round=4,
    num_rounds=9,
    layout=LAYOUT,
    weights=WEIGHTS,
    hyper=Hyperparameters(learning_rate=0.25, momentum=0.5, local_epochs=3, batch_size=7),
)
UPDATE = EncodedUpdate(
    round=4,
    parent=vector_digest(WEIGHTS),
    layout_digest=LAYOUT.digest,
    codec="raw",
    payload=bytes(range(24)),
    num_examples=64.0,
    epsilon=1.5,
)


def over_the_wire(content: RecordDict) -> RecordDict:
    """Return the records as Flower's protocol buffers bring them to the other side."""
    return recorddict_from_proto(recorddict_to_proto(content))


def changed(content: RecordDict, record: str, **fields: Any) -> RecordDict:
    target = content.config_records[record]
    for name, value in fields.items():
        key = name.replace("_", "-")
        if value is None:
            del target[key]
        else:
            target[key] = value
    return content


def test_a_request_survives_the_wire() -> None:
    found = decode_request(over_the_wire(encode_request(REQUEST)))
    assert found.weights.tobytes() == WEIGHTS.tobytes()
    assert (found.run_name, found.round, found.num_rounds) == ("spring", 4, 9)
    assert found.hyper == REQUEST.hyper
    assert found.layout == LAYOUT
    assert str(found.key) == str(REQUEST.key)


def test_the_key_of_a_round_changes_with_everything_that_makes_it_another() -> None:
    others = [
        WeightsRequest("autumn", 4, 9, LAYOUT, WEIGHTS, REQUEST.hyper),
        WeightsRequest("spring", 5, 9, LAYOUT, WEIGHTS, REQUEST.hyper),
        WeightsRequest("spring", 4, 9, LAYOUT, WEIGHTS + 1, REQUEST.hyper),
        WeightsRequest("spring", 4, 9, LAYOUT, WEIGHTS, Hyperparameters()),
    ]
    keys = {str(request.key) for request in [REQUEST, *others]}
    assert len(keys) == 5
    longer = WeightsRequest("spring", 4, 99, LAYOUT, WEIGHTS, REQUEST.hyper)
    assert str(longer.key) == str(REQUEST.key)


def test_a_server_of_another_protocol_is_named() -> None:
    content = changed(encode_request(REQUEST), "config", protocol=99)
    with pytest.raises(ProtocolMismatch, match=rf"99, this side {PROTOCOL_VERSION}.*upgrade"):
        decode_request(content)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"run_name": None}, "run-name"),
        ({"run_name": 3}, "run-name"),
        ({"run_name": b"x" * 1000}, "got bytes"),
        ({"server_round": "four"}, "server-round"),
        ({"server_round": 4.5}, "server-round"),
        ({"num_rounds": True}, "num-rounds"),
        ({"learning_rate": None}, "learning-rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"batch_size": 0}, "batch_size"),
        ({"local_epochs": -1}, "local_epochs"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_a_device_refuses_a_malformed_request_and_says_which_field(
    fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(TransportError, match=text) as caught:
        decode_request(changed(encode_request(REQUEST), "config", **fields))
    assert len(str(caught.value)) < 300


def test_a_whole_number_will_do_for_a_rate() -> None:
    content = changed(encode_request(REQUEST), "config", learning_rate=1)
    assert decode_request(content).hyper.learning_rate == 1.0


def test_a_message_that_is_not_from_fedge_is_a_transport_error() -> None:
    with pytest.raises(TransportError, match="'config'"):
        decode_request(RecordDict())
    content = encode_request(REQUEST)
    del content["arrays"]
    with pytest.raises(TransportError, match="arrays"):
        decode_request(content)


@pytest.mark.parametrize("shape", [[-1, 2], [2, 3], [2**31 - 1] * 3])
def test_weights_whose_shape_is_a_lie_are_a_transport_error(shape: list[int]) -> None:
    content = encode_request(REQUEST)
    good = content.array_records["arrays"]["weight"]
    content.array_records["arrays"]["weight"] = Array(
        good.dtype, tuple(shape), good.stype, good.data
    )
    with pytest.raises(TransportError, match="weights are malformed"):
        decode_request(content)


@pytest.mark.parametrize("epsilon", [1.5, 0.0, None])
def test_an_update_survives_the_wire(epsilon: float | None) -> None:
    update = EncodedUpdate(**{**vars(UPDATE), "epsilon": epsilon})
    assert decode_reply(over_the_wire(encode_update(update)), LAYOUT) == update


def test_a_stock_flower_clients_whole_weights_are_taken() -> None:
    content = RecordDict(
        {
            "my-arrays": to_array_record(LAYOUT, WEIGHTS * 2),
            "my-metrics": MetricRecord({"loss": 0.5, "num-examples": 12}),
        }
    )
    found = decode_reply(over_the_wire(content), LAYOUT)
    assert isinstance(found, FullWeights)
    assert found.weights.tobytes() == (WEIGHTS * 2).tobytes()
    assert (found.num_examples, type(found.num_examples)) == (12.0, float)


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"metrics": MetricRecord({"num-examples": 12})},
        {"arrays": to_array_record(LAYOUT, WEIGHTS)},
        {
            "a": to_array_record(LAYOUT, WEIGHTS),
            "b": to_array_record(LAYOUT, WEIGHTS),
            "metrics": MetricRecord({"num-examples": 12}),
        },
        {
            "arrays": to_array_record(LAYOUT, WEIGHTS),
            "metrics": MetricRecord({"num-examples": [1, 2]}),
        },
    ],
)
def test_a_stock_reply_that_lacks_something_is_malformed(records: dict[str, Any]) -> None:
    with pytest.raises(UpdateRejected) as caught:
        decode_reply(RecordDict(records), LAYOUT)
    assert caught.value.reason == "malformed"


def test_a_stock_reply_of_another_model_is_refused_by_name() -> None:
    other = ArrayRecord({"weight": Array(np.zeros((2, 2), np.float32))})
    content = RecordDict({"arrays": other, "metrics": MetricRecord({"num-examples": 1})})
    with pytest.raises(UpdateRejected, match="tensor bias"):
        decode_reply(content, LAYOUT)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"protocol": 2}, "protocol"),
        ({"protocol": None}, "protocol"),
        ({"protocol": "1"}, "protocol"),
        ({"round": "4"}, "malformed"),
        ({"round": 4.0}, "malformed"),
        ({"round": None}, "malformed"),
        ({"parent": b"bytes"}, "malformed"),
        ({"parent": 5}, "malformed"),
        ({"layout": None}, "malformed"),
        ({"codec": None}, "malformed"),
        ({"codec": b"y" * 10_000}, "malformed"),
        ({"payload": "text"}, "malformed"),
        ({"payload": None}, "malformed"),
        ({"payload": [1, 2]}, "malformed"),
    ],
)
def test_a_hostile_update_is_refused_in_few_words(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        decode_reply(changed(encode_update(UPDATE), "update", **fields), LAYOUT)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 400


scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=9),
    st.booleans(),
)


def outcome(decode: Callable[[], object]) -> str:
    try:
        return str(decode())
    except FedgeError as error:
        return str(error)


@given(
    st.dictionaries(
        st.sampled_from(["protocol", "round", "parent", "layout", "codec", "payload", "reason"]),
        scalars,
    ),
    st.sampled_from(["update", "refusal", "config", "other"]),
    st.dictionaries(st.sampled_from(["num-examples", "epsilon", "loss"]), st.floats()),
)
def test_random_records_are_read_or_refused_and_never_crash(
    fields: dict[str, Any], name: str, metrics: dict[str, float]
) -> None:
    content = RecordDict({name: ConfigRecord(fields), "metrics": MetricRecord(metrics)})  # type: ignore[arg-type]
    for decode in (
        lambda: decode_reply(content, LAYOUT),
        lambda: decode_evaluation(content),
        lambda: decode_request(content),
    ):
        assert 0 < len(outcome(decode)) < 2000


def test_an_evaluation_survives_the_wire() -> None:
    evaluation = Evaluation(num_examples=20.0, metrics={"loss": 0.25, "accuracy": 0.75})
    assert decode_evaluation(over_the_wire(encode_evaluation(evaluation))) == evaluation


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"loss": 1.0}, "malformed"),
        ({"loss": math.nan, "num-examples": 2}, "not-finite"),
        ({"loss": math.inf, "num-examples": 2}, "not-finite"),
        ({"loss": 1.0, "num-examples": 0}, "examples"),
        ({"loss": 1.0, "num-examples": -3}, "examples"),
        ({"loss": 1.0, "num-examples": math.nan}, "examples"),
        ({"loss": 1.0, "num-examples": math.inf}, "examples"),
    ],
)
def test_a_hostile_evaluation_is_refused(metrics: dict[str, Any], reason: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        decode_evaluation(RecordDict({"metrics": MetricRecord(metrics)}))
    assert caught.value.reason == reason


def test_a_refusal_is_understood_in_place_of_either_reply() -> None:
    refusal = Refusal("budget", "no ε is left")
    content = over_the_wire(encode_refusal(refusal))
    assert decode_reply(content, LAYOUT) == refusal
    assert decode_evaluation(content) == refusal


@pytest.mark.parametrize("value", ["x" * 100_000, b"x" * 100_000, 5, [1, 2]])
def test_a_hostile_refusal_stays_short(value: Any) -> None:
    content = RecordDict({"refusal": ConfigRecord({"reason": value, "detail": value})})
    found = decode_reply(content, LAYOUT)
    assert isinstance(found, Refusal)
    assert len(found.reason) <= 40
    assert len(found.detail) <= 1000
