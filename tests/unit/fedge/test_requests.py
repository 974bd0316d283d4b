from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ProtocolMismatch, TransportError
from fedge.params import Layout, vector_digest
from fedge.protocol import PROTOCOL_VERSION
from fedge.requests import (
    MAX_CODEC_LENGTH,
    MAX_DOWNLINK_PAYLOADS,
    DeltaRequest,
    Downlink,
    WeightsRequest,
    decode_request,
    encode_request,
)
from fedge.settings import Hyperparameters

LAYOUT = Layout(("weight", "bias"), ((2, 2), (2,)))
WEIGHTS = np.arange(6, dtype=np.float32)
CONTROL = np.linspace(-1, 1, 6, dtype=np.float32)
REQUEST = WeightsRequest(
    run_name="spring",
    round=4,
    num_rounds=9,
    layout=LAYOUT,
    weights=WEIGHTS,
    hyper=Hyperparameters(learning_rate=0.25, momentum=0.5, local_epochs=3, batch_size=7),
)
DOWNLINK = Downlink("a" * 64, vector_digest(WEIGHTS), "int8", (b"one", b"", b"\x00\xff"))


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


def decoded_weights(content: RecordDict) -> WeightsRequest:
    request = decode_request(content)
    assert isinstance(request, WeightsRequest)
    return request


def test_a_request_survives_the_wire() -> None:
    found = decoded_weights(over_the_wire(encode_request(REQUEST)))
    assert found.weights.tobytes() == WEIGHTS.tobytes()
    assert (found.run_name, found.round, found.num_rounds) == ("spring", 4, 9)
    assert found.hyper == REQUEST.hyper
    assert found.layout == LAYOUT
    assert str(found.key) == str(REQUEST.key)


def test_the_optimizer_travels_and_one_that_there_is_not_is_refused() -> None:
    adam = WeightsRequest("a", 1, 1, LAYOUT, WEIGHTS, Hyperparameters(optimizer="adam"))
    content = encode_request(adam)
    assert decoded_weights(over_the_wire(content)).hyper.optimizer == "adam"
    content.config_records["config"]["optimizer"] = "lion"
    with pytest.raises(TransportError, match=r"optimizer.*one of sgd, adam"):
        decode_request(content)


def test_personal_layers_travel_where_there_are_any() -> None:
    assert "personal-layers" not in encode_request(REQUEST).config_records["config"]
    hyper = Hyperparameters(personal_layers=("head.*", "*.bias"))
    content = encode_request(WeightsRequest("a", 1, 1, LAYOUT, WEIGHTS, hyper))
    assert decoded_weights(over_the_wire(content)).hyper == hyper
    for wrong in ("head.*", [1, 2], [b"head"]):
        content.config_records["config"]["personal-layers"] = wrong
        with pytest.raises(TransportError, match=r"personal[-_]layers"):
            decode_request(content)


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


@pytest.mark.parametrize("keep_parent", [False, True])
def test_codec_control_and_what_to_keep_survive_the_wire(keep_parent: bool) -> None:
    request = replace(REQUEST, codec="topk:0.05+f16", control=CONTROL, keep_parent=keep_parent)
    found = decoded_weights(over_the_wire(encode_request(request)))
    assert found.control is not None
    assert found.control.tobytes() == CONTROL.tobytes()
    assert (found.codec, found.keep_parent) == ("topk:0.05+f16", keep_parent)
    assert decoded_weights(over_the_wire(encode_request(REQUEST))).control is None


def test_another_codec_is_another_round() -> None:
    assert str(replace(REQUEST, codec="int8").key) != str(REQUEST.key)


@pytest.mark.parametrize("payloads", [(), DOWNLINK.payloads])
def test_a_downlink_survives_the_wire_and_no_weights_travel(payloads: tuple[bytes, ...]) -> None:
    downlink = replace(DOWNLINK, payloads=payloads)
    request = replace(REQUEST, codec="int8", control=CONTROL, keep_parent=True)
    content = over_the_wire(encode_request(request, downlink))
    assert "arrays" not in content
    found = decode_request(content)
    assert isinstance(found, DeltaRequest)
    assert found.downlink == downlink
    assert found.layout == LAYOUT
    assert str(found.key) == str(request.key)
    whole = found.with_weights(WEIGHTS)
    assert whole.control is not None
    assert whole.control.tobytes() == CONTROL.tobytes()
    assert replace(whole, control=None) == replace(request, weights=whole.weights, control=None)


@pytest.mark.parametrize("name", ["config", "downlink"])
@pytest.mark.parametrize(
    "codec", ["", "a/b", "RAW", "x" * (MAX_CODEC_LENGTH + 1), "raw\n", 5, b"raw", None]
)
def test_a_codec_that_is_no_spec_is_a_transport_error(name: str, codec: Any) -> None:
    content = encode_request(REQUEST, DOWNLINK)
    with pytest.raises(TransportError, match="codec") as caught:
        decode_request(changed(content, name, codec=codec))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"base": "a" * 63}, "base"),
        ({"base": "A" * 64}, "base"),
        ({"parent": None}, "parent"),
        ({"parent": b"a" * 64}, "parent"),
        ({"payloads": None}, "payloads"),
        ({"payloads": b"bytes"}, "payloads"),
        ({"payloads": ["text"]}, "payloads"),
        ({"payloads": [1, 2]}, "payloads"),
        ({"payloads": [b"x"] * (MAX_DOWNLINK_PAYLOADS + 1)}, "payloads"),
        ({"layout": None}, "layout"),
        ({"layout": "{}"}, "layout"),
        ({"layout": "[" * 100_000}, "layout"),
        ({"layout": '{"names": ["a"], "shapes": [[-1]]}'}, "layout"),
    ],
)
def test_a_hostile_downlink_is_a_transport_error_in_few_words(
    fields: dict[str, Any], text: str
) -> None:
    content = changed(encode_request(REQUEST, DOWNLINK), "downlink", **fields)
    with pytest.raises(TransportError, match=text) as caught:
        decode_request(content)
    assert len(str(caught.value)) < 400


def test_a_control_of_another_shape_is_a_transport_error() -> None:
    content = encode_request(replace(REQUEST, control=CONTROL))
    del content.array_records["control"]["bias"]
    with pytest.raises(TransportError, match="bias"):
        decode_request(content)


@given(
    st.dictionaries(
        st.sampled_from(["layout", "base", "parent", "codec", "payloads"]),
        st.one_of(
            st.text(max_size=70), st.binary(max_size=9), st.integers(0, 9), st.just([b"x", b""])
        ),
    )
)
def test_a_random_downlink_is_read_or_refused_and_never_crashes(fields: dict[str, Any]) -> None:
    content = encode_request(REQUEST, DOWNLINK)
    content["downlink"] = ConfigRecord({**content.config_records["downlink"], **fields})
    try:
        text = type(decode_request(content)).__name__
    except TransportError as error:
        text = str(error)
    assert 0 < len(text) < 400
