from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.codecs import decode_payload, make_codec
from aggregation.contracts import Encoded
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector
from tests.unit.aggregation.codecs.oracles import (
    SPECS,
    deltas,
    heavy_tailed,
    layout_of,
    usual_deltas,
)

SPARSE = ["topk:0.2", "randomk:0.2"]
ALL = pytest.mark.parametrize("spec", SPECS)
LOSSY = pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "raw"])


def encode(spec: str, delta: Vector) -> tuple[Encoded, Layout]:
    codec, layout = make_codec(spec), layout_of(len(delta))
    return codec.encode(delta, codec.init(layout), np.random.default_rng(0))[0], layout


@ALL
@given(delta=deltas)
def test_finite_deltas_come_back_finite_and_as_long(spec: str, delta: Vector) -> None:
    before = delta.copy()
    encoded, layout = encode(spec, delta)
    decoded = decode_payload(spec, encoded.payload, layout, [spec])
    assert decoded.shape == delta.shape
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    assert np.isfinite(encoded.distortion)
    assert delta.tobytes() == before.tobytes()


@ALL
@given(delta=usual_deltas)
def test_it_says_what_it_cost(spec: str, delta: Vector) -> None:
    encoded, layout = encode(spec, delta)
    assert encoded.codec == spec
    assert encoded.bits == 8 * len(encoded.payload) / layout.size
    error = decode_payload(spec, encoded.payload, layout, [spec]).astype(np.float64) - delta
    whole = float(np.dot(delta.astype(np.float64), delta))
    expected = float(np.dot(error, error)) / whole if whole else 0.0
    assert encoded.distortion == pytest.approx(expected, rel=1e-3, abs=1e-9)


@ALL
@pytest.mark.parametrize("size", [0, 1, 2, 7, 4096, 4097, 70_000])
def test_zeros_stay_zeros(spec: str, size: int) -> None:
    encoded, layout = encode(spec, np.zeros(size, np.float32))
    decoded = decode_payload(spec, encoded.payload, layout, [spec])
    assert decoded.shape == (size,)
    assert not decoded.any()
    assert encoded.distortion == 0.0
    assert np.isfinite(encoded.bits)


@ALL
@pytest.mark.parametrize("size", [1, 5, 4096, 5000])
def test_the_length_follows_from_the_layout_alone(spec: str, size: int) -> None:
    layouts = [np.zeros(size, np.float32), heavy_tailed(size), np.ones(size, np.float32)]
    assert len({len(encode(spec, delta)[0].payload) for delta in layouts}) == 1


@ALL
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1e20, 3e38])
def test_extreme_values_stay_finite(spec: str, scale: float) -> None:
    delta = np.array([1, -1, 0.5, 0.25, 0] * 30) * scale
    encoded, layout = encode(spec, delta.astype(np.float32))
    assert np.isfinite(decode_payload(spec, encoded.payload, layout, [spec])).all()
    assert np.isfinite(encoded.distortion)


@LOSSY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_delta_that_is_not_finite_is_refused(spec: str, bad: float) -> None:
    delta = heavy_tailed(70_000)
    delta[69_000] = bad
    with pytest.raises(UpdateRejected) as caught:
        encode(spec, delta)
    assert caught.value.reason == "not-finite"


@ALL
def test_the_same_generator_gives_the_same_bytes(spec: str) -> None:
    delta = heavy_tailed(6000)
    assert encode(spec, delta)[0].payload == encode(spec, delta)[0].payload


def test_what_is_sent_of_a_share_costs_what_the_bars_ask() -> None:
    for spec, ratio in [("topk:0.05+f16", 10), ("topk:0.01+f16", 40), ("topk:0.05+f32", 10)]:
        assert 32 / encode(spec, heavy_tailed(100_000))[0].bits >= ratio


@ALL
@given(payload=st.binary(max_size=60))
def test_any_bytes_are_a_vector_or_refused(spec: str, payload: bytes) -> None:
    layout = layout_of(20)
    expected = len(encode(spec, np.ones(20, np.float32))[0].payload)
    for candidate in (payload, (payload * 20)[:expected]):
        check_hostile(spec, candidate, layout)


@ALL
@given(data=st.data(), size=st.integers(1, 100))
def test_a_damaged_payload_is_a_vector_or_refused(
    spec: str, data: st.DataObject, size: int
) -> None:
    encoded, layout = encode(spec, heavy_tailed(size))
    payload = bytearray(encoded.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    check_hostile(spec, bytes(payload), layout)
    cut = data.draw(st.integers(0, len(payload) - 1))
    for wrong in (bytes(payload[:cut]), bytes(payload) + b"\0"):
        with pytest.raises(UpdateRejected) as caught:
            decode_payload(spec, wrong, layout, SPECS)
        assert caught.value.reason == "bytes"


def check_hostile(spec: str, payload: bytes, layout: Layout) -> None:
    decoded, reason = None, ""
    try:
        decoded = decode_payload(spec, payload, layout, SPECS)
    except UpdateRejected as error:
        reason = error.reason
    if decoded is None:
        assert reason in {"bytes", "payload"}
        return
    assert decoded.shape == (layout.size,)
    assert decoded.dtype == np.float32
    if not {"raw", "f32", "f16", "bf16"} & set(spec.split("+")):
        assert np.isfinite(decoded).all()


@ALL
def test_a_huge_layout_takes_no_memory_for_a_short_payload(spec: str) -> None:
    with pytest.raises(UpdateRejected) as caught:
        decode_payload(spec, b"1234", layout_of(2**45), [spec])
    assert caught.value.reason == "bytes"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 3e38])
@pytest.mark.parametrize("spec", ["int8", "int4", "rotate+int8", "rotate+eden:1"])
def test_a_scale_out_of_range_is_refused(spec: str, bad: float) -> None:
    payload = bytearray(encode(spec, heavy_tailed(100))[0].payload)
    start = 8 if spec.startswith("rotate") else 0
    payload[start : start + 4] = np.array([bad], "<f4").tobytes()
    with pytest.raises(UpdateRejected, match="scales"):
        decode_payload(spec, bytes(payload), layout_of(100), [spec])


def test_a_code_that_no_encoder_writes_is_refused() -> None:
    payload = bytearray(encode("int8", heavy_tailed(100))[0].payload)
    payload[50] = 0
    with pytest.raises(UpdateRejected, match="codes"):
        decode_payload("int8", bytes(payload), layout_of(100), ["int8"])


@pytest.mark.parametrize("spec", ["", "RAW", "pickle", "x" * 10_000, "int8"])
def test_a_codec_that_was_not_offered_is_a_short_refusal(spec: str) -> None:
    with pytest.raises(UpdateRejected, match="raw or topk") as caught:
        decode_payload(spec, bytes(80), layout_of(20), ["topk:0.1+f16", "raw"])
    assert caught.value.reason == "codec"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("sparse", "values"),
    list(itertools.product(SPARSE, ["f32", "f16", "bf16", "int8", "rotate+int4"])),
)
def test_sparsification_and_quantisation_compose(sparse: str, values: str) -> None:
    delta = heavy_tailed(500)
    encoded, layout = encode(f"{sparse}+{values}", delta)
    decoded = decode_payload(encoded.codec, encoded.payload, layout, [encoded.codec])
    sent = np.flatnonzero(decoded)
    assert len(sent) <= 100
    np.testing.assert_allclose(decoded[sent], delta[sent], atol=np.abs(delta).max() / 2)
