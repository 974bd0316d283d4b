from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.codecs import make_codec
from fedge.params import Vector
from tests.unit.aggregation.codecs.oracles import deltas, layout_of

BF16_LARGEST = float.fromhex("0x1.fep127")


def through(spec: str, delta: Vector) -> Vector:
    codec, layout = make_codec(spec), layout_of(len(delta))
    encoded, state = codec.encode(delta, codec.init(layout), np.random.default_rng(0))
    assert state == {}
    return codec.decode(encoded.payload, layout)


@given(deltas)
def test_f32_loses_no_bit(delta: Vector) -> None:
    assert through("f32", delta).tobytes() == delta.tobytes()


@given(deltas)
def test_f16_is_numpys_rounding_of_what_fits(delta: Vector) -> None:
    expected = [float(np.float16(min(max(value, -65504), 65504))) for value in delta.tolist()]
    assert through("f16", delta).tolist() == expected


@given(deltas)
def test_f16_error_is_bounded(delta: Vector) -> None:
    inside = delta[np.abs(delta) <= 65504].astype(np.float64)
    error = np.abs(through("f16", inside.astype(np.float32)) - inside)
    assert (error <= np.maximum(np.abs(inside) * 2.0**-11, 2.0**-25)).all()


@given(deltas)
def test_bf16_error_is_bounded(delta: Vector) -> None:
    decoded = through("bf16", delta).astype(np.float64)
    exact = np.clip(delta.astype(np.float64), -BF16_LARGEST, BF16_LARGEST)
    assert (np.abs(decoded - exact) <= np.maximum(np.abs(exact) * 2.0**-8, 2.0**-134)).all()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F800000),  # halfway goes to the even one below
        (0x3F818000, 0x3F820000),  # halfway goes to the even one above
        (0x3F808001, 0x3F810000),
        (0x7F7FFFFF, 0x7F7F0000),  # the largest float32 does not become infinite
        (0xFF7FFFFF, 0xFF7F0000),
        (0x00000001, 0x00000000),
        (0x80000000, 0x80000000),
    ],
)
def test_bf16_rounds_to_the_nearest_even(bits: int, expected: int) -> None:
    delta = np.array([bits], np.uint32).view(np.float32)
    assert through("bf16", delta).view(np.uint32).tolist() == [expected]


@given(hnp.arrays(np.uint16, st.integers(1, 50)), st.sampled_from(["f16", "bf16"]))
def test_a_decoded_half_is_encoded_as_itself(
    bits: np.ndarray[tuple[int], np.dtype[np.uint16]], spec: str
) -> None:
    codec, layout = make_codec(spec), layout_of(len(bits))
    decoded = codec.decode(bits.tobytes(), layout)
    decoded[~np.isfinite(decoded)] = 0
    assert through(spec, decoded).tobytes() == decoded.tobytes()
