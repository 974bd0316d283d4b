from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import FedgeError, UpdateRejected
from fedge.messages import (
    EncodedUpdate,
    Evaluation,
    FullWeights,
    Refusal,
    decode_evaluation,
    decode_reply,
    decode_request,
    encode_evaluation,
    encode_refusal,
    encode_update,
)
from fedge.params import Layout, vector_digest
from fedge.records import to_array_record

LAYOUT = Layout(("weight", "bias"), ((2, 2), (2,)))
WEIGHTS = np.arange(6, dtype=np.float32)
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


@pytest.mark.parametrize("epsilon", [1.5, 0.0, None])
@pytest.mark.parametrize("holds_parent", [False, True])
def test_an_update_survives_the_wire(epsilon: float | None, holds_parent: bool) -> None:
    update = replace(
        UPDATE, epsilon=epsilon, num_steps=7.0, distortion=0.25, holds_parent=holds_parent
    )
    assert decode_reply(over_the_wire(encode_update(update)), LAYOUT) == update


@pytest.mark.parametrize(
    "value", [None, 0, 0.5, -3, math.nan, math.inf, "7", b"7", True, [7.0], -(2**63)]
)
def test_a_number_of_steps_that_cannot_be_is_refused(value: Any) -> None:
    content = changed(encode_update(UPDATE), "update", num_steps=value)
    with pytest.raises(UpdateRejected) as caught:
        decode_reply(content, LAYOUT)
    assert caught.value.reason == "steps"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [None, -0.5, math.nan, math.inf, "much", b"1", True, [0.5]])
def test_a_distortion_that_cannot_be_is_ignored(value: Any) -> None:
    content = changed(encode_update(UPDATE), "update", distortion=value)
    found = decode_reply(content, LAYOUT)
    assert isinstance(found, EncodedUpdate)
    assert found.distortion == 0.0


@pytest.mark.parametrize("value", [None, 1, "true", b"\x01", [True]])
def test_only_a_plain_yes_means_that_the_device_holds_the_parent(value: Any) -> None:
    content = changed(encode_update(UPDATE), "update", holds_parent=value)
    found = decode_reply(content, LAYOUT)
    assert isinstance(found, EncodedUpdate)
    assert not found.holds_parent


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
        ({"protocol": 1}, "protocol"),
        ({"protocol": None}, "protocol"),
        ({"protocol": "2"}, "protocol"),
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
        st.sampled_from(
            ["protocol", "round", "parent", "layout", "codec", "payload", "reason", "num-steps"]
        ),
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
