import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.mqtt.payloads import MAX_SEQUENCE, read_label, read_sample
from edge_client.mqtt.settings import SchemaConfig
from fedge.errors import PayloadRejected
from fedge.mqtt.messages import Incoming

SCHEMA = SchemaConfig(shape=(2, 2), max_payload_bytes=8192)
INPUT = [[1, 2.5], [-3, 0]]
GOOD = {"source": "camera", "sequence": 7, "input": INPUT}


def message(payload: Any, content_type: str = "", **properties: str) -> Incoming:
    content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Incoming("topic", content, properties, content_type)


def reason(payload: Any, content_type: str = "", **properties: str) -> str:
    with pytest.raises(PayloadRejected) as caught:
        read_sample(message(payload, content_type, **properties), SCHEMA)
    return caught.value.reason


def test_a_json_sample_is_read() -> None:
    sample = read_sample(message({**GOOD, "label": 3}), SCHEMA)
    assert (sample.source, sample.sequence, sample.sample_id) == ("camera", 7, "camera/7")
    assert sample.inputs.dtype == np.float32
    assert sample.inputs.tolist() == INPUT
    assert sample.label is not None
    assert sample.label.dtype == np.int64
    assert sample.label.tolist() == 3


def test_source_and_sequence_may_be_user_properties() -> None:
    sample = read_sample(message({"input": INPUT}, source="s", sequence="12"), SCHEMA)
    assert (sample.source, sample.sequence) == ("s", 12)


def test_a_packed_sample_is_little_endian_float32() -> None:
    content = np.array(INPUT, "<f4").tobytes()
    found = message(content, "application/octet-stream", source="s", sequence="1")
    assert read_sample(found, SCHEMA).inputs.tolist() == INPUT
    packed = SchemaConfig(format="packed", shape=(2, 2))
    assert read_sample(message(content, source="s", sequence="1"), packed).inputs.tolist() == INPUT


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\xff\xfe", "encoding"),
        (b"", "json"),
        (b"{", "json"),
        (b'{"a": 1}x', "json"),
        (b"[" * 4000, "nesting"),
        (b'{"input": ' + b"[" * 4000 + b"}", "nesting"),
        (b'{"sequence": ' + b"9" * 5000 + b"}", "json"),
        (b" " * 9000, "size"),
        (b'{"source":"s","sequence":1,"input":[[NaN,1],[1,1]]}', "number"),
        (b'{"source":"s","sequence":1,"input":[[Infinity,1],[1,1]]}', "number"),
        (b'{"source":"s","sequence":1,"input":[[1e999,1],[1,1]]}', "number"),
        (b'{"source":"s","sequence":1,"input":[[1e39,1],[1,1]]}', "number"),
        (b'{"source":"s","sequence":1,"input":[[' + b"9" * 400 + b",1],[1,1]]}", "number"),
        ([], "type"),
        ("text", "type"),
        (None, "type"),
        ({**GOOD, "input": [[1, 2], [3]]}, "shape"),
        ({**GOOD, "input": [1, 2, 3, 4]}, "shape"),
        ({**GOOD, "input": [[[1], 2], [3, 4]]}, "shape"),
        ({**GOOD, "input": {"0": 1}}, "shape"),
        ({**GOOD, "input": [["1", 2], [3, 4]]}, "type"),
        ({**GOOD, "input": [[None, 2], [3, 4]]}, "type"),
        ({**GOOD, "input": [[True, 2], [3, 4]]}, "type"),
        ({"source": "s", "sequence": 1}, "missing"),
        ({**GOOD, "sequence": -1}, "sequence"),
        ({**GOOD, "sequence": MAX_SEQUENCE + 1}, "sequence"),
        ({**GOOD, "sequence": 10**40}, "sequence"),
        ({**GOOD, "sequence": 1.0}, "sequence"),
        ({**GOOD, "sequence": True}, "sequence"),
        ({**GOOD, "sequence": "1"}, "sequence"),
        ({"source": "s", "input": INPUT}, "sequence"),
        ({**GOOD, "source": ""}, "source"),
        ({**GOOD, "source": "x" * 200}, "source"),
        ({**GOOD, "source": 5}, "source"),
        ({**GOOD, "source": "a\0b"}, "source"),
        (b'{"source":"\\ud800","sequence":1,"input":[[1,1],[1,1]]}', "source"),
        ({**GOOD, "label": "seven"}, "type"),
        ({**GOOD, "label": [1]}, "shape"),
        ({**GOOD, "label": 1.5}, "type"),
        ({**GOOD, "label": 2**70}, "number"),
    ],
)
def test_a_hostile_sample_is_refused_with_its_reason(payload: Any, expected: str) -> None:
    assert reason(payload) == expected


@pytest.mark.parametrize(
    ("content", "sequence", "expected"),
    [
        (b"\0" * 15, "1", "shape"),
        (b"\0" * 17, "1", "shape"),
        (np.array([1, np.nan, 1, 1], "<f4").tobytes(), "1", "number"),
        (np.array([1, np.inf, 1, 1], "<f4").tobytes(), "1", "number"),
        (b"\0" * 16, "-1", "sequence"),
        (b"\0" * 16, "1" * 40, "sequence"),
        (b"\0" * 16, "١", "sequence"),
    ],
)
def test_a_hostile_packed_sample_is_refused(content: bytes, sequence: str, expected: str) -> None:
    assert reason(content, "application/octet-stream", source="s", sequence=sequence) == expected


def test_an_unknown_content_type_is_refused() -> None:
    assert reason(GOOD, "text/html") == "content-type"


def test_whole_numbers_are_checked_against_their_range() -> None:
    schema = SchemaConfig(shape=(1,), dtype="int32")
    assert read_sample(message({**GOOD, "input": [2**31 - 1]}), schema).inputs.dtype == np.int32
    for bad in (2**31, 2**80):
        with pytest.raises(PayloadRejected):
            read_sample(message({**GOOD, "input": [bad]}), schema)


def test_a_label_names_its_sample_by_id_or_number() -> None:
    assert read_label(message({"sample_id": "a/1", "label": 2}), SCHEMA).sample_id == "a/1"
    found = read_label(message({"source": "a", "sequence": 1, "label": 2}), SCHEMA)
    assert (found.sample_id, found.target.tolist()) == ("a/1", 2)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"sample_id": "a/1"}, "missing"),
        ({"sample_id": "", "label": 1}, "sample-id"),
        ({"sample_id": 5, "label": 1}, "sample-id"),
        ({"sample_id": "a/1", "label": [1]}, "shape"),
        ({"label": 1}, "source"),
    ],
)
def test_a_hostile_label_is_refused(payload: Any, expected: str) -> None:
    with pytest.raises(PayloadRejected) as caught:
        read_label(message(payload), SCHEMA)
    assert caught.value.reason == expected


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


@given(
    st.binary(max_size=200)
    | ANYTHING.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {},
        optional={
            "source": ANYTHING | st.text(),
            "sequence": ANYTHING | st.integers(),
            "input": ANYTHING | st.lists(st.lists(st.floats(), min_size=2, max_size=2), max_size=2),
            "label": ANYTHING | st.integers(),
        },
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["", "application/json", "application/octet-stream", "x"]),
    st.dictionaries(st.sampled_from(["source", "sequence"]), st.text()),
)
def test_whatever_comes_is_read_as_declared_or_refused(
    content: bytes, content_type: str, properties: dict[str, str]
) -> None:
    found = message(content, content_type, **properties)
    try:
        sample = read_sample(found, SCHEMA)
    except PayloadRejected:
        return
    assert sample.inputs.shape == (2, 2)
    assert sample.inputs.dtype == np.float32
    assert all(math.isfinite(value) for value in sample.inputs.ravel().tolist())
    assert 0 <= sample.sequence <= MAX_SEQUENCE
    assert 1 <= len(sample.source.encode()) <= 128
