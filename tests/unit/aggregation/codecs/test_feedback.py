from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.codecs import make_codec
from aggregation.codecs.feedback import RESIDUAL
from fedge.errors import UpdateRejected
from fedge.params import Vector
from tests.unit.aggregation.codecs.oracles import SPECS, heavy_tailed, layout_of, topk, usual

FEEDBACK_SPECS = [
    spec for spec in SPECS if spec.startswith(("topk", "randomk")) and "signs" not in spec
]
rounds = st.integers(1, 60).flatmap(
    lambda size: st.lists(hnp.arrays(np.float32, size, elements=usual), min_size=1, max_size=6)
)


@pytest.mark.parametrize("spec", FEEDBACK_SPECS)
@given(rounds)
def test_what_was_sent_and_what_is_left_add_up_to_all_deltas(
    spec: str, deltas: list[Vector]
) -> None:
    codec, layout, rng = make_codec(spec), layout_of(len(deltas[0])), np.random.default_rng(0)
    state = codec.init(layout)
    sent = np.zeros(layout.size)
    for delta in deltas:
        encoded, state = codec.encode(delta, state, rng)
        sent += codec.decode(encoded.payload, layout)
    total = np.sum(np.array(deltas, np.float64), axis=0)
    size = float(np.abs(np.array(deltas)).sum()) + float(np.abs(sent).sum())
    assert list(state) == [RESIDUAL]
    assert state[RESIDUAL].dtype == np.float32
    assert np.abs(sent + state[RESIDUAL] - total).max() <= 1e-6 * size + 1e-30


@given(rounds, st.sampled_from([0.05, 0.3, 1.0]))
def test_topk_sends_what_a_plain_loop_sends(deltas: list[Vector], share: float) -> None:
    layout = layout_of(len(deltas[0]))
    codec, rng = make_codec(f"topk:{share}+f32"), np.random.default_rng(0)
    state, residual = codec.init(layout), [np.float32(0)] * layout.size
    count = min(layout.size, max(1, round(share * layout.size)))
    for delta in deltas:
        encoded, state = codec.encode(delta, state, rng)
        pending = [left + value for left, value in zip(residual, delta, strict=True)]
        expected = [np.float32(0)] * layout.size
        for place in topk([float(value) for value in pending], count):
            expected[place] = pending[place]
        residual = [a - b for a, b in zip(pending, expected, strict=True)]
        assert codec.decode(encoded.payload, layout).tolist() == expected
        assert state[RESIDUAL].tolist() == residual


@pytest.mark.parametrize("spec", FEEDBACK_SPECS)
def test_distortion_is_against_the_sum_that_was_encoded(spec: str) -> None:
    layout, rng = layout_of(500), np.random.default_rng(0)
    codec = make_codec(spec)
    _, state = codec.encode(heavy_tailed(500, 1), codec.init(layout), rng)
    pending = heavy_tailed(500, 2).astype(np.float64) + state[RESIDUAL]
    encoded, _ = codec.encode(heavy_tailed(500, 2), state, rng)
    error = codec.decode(encoded.payload, layout) - pending
    expected = np.dot(error, error) / np.dot(pending, pending)
    assert encoded.distortion == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert not codec.unbiased


def test_the_state_that_was_given_is_unchanged() -> None:
    layout, rng = layout_of(100), np.random.default_rng(0)
    codec = make_codec("topk:0.1+f16")
    state = codec.init(layout)
    _, after = codec.encode(heavy_tailed(100), state, rng)
    assert not state[RESIDUAL].any()
    assert after[RESIDUAL].any()


def test_a_residual_of_another_length_is_refused() -> None:
    codec = make_codec("topk:0.1+f16")
    with pytest.raises(UpdateRejected) as caught:
        codec.encode(heavy_tailed(100), codec.init(layout_of(1)), np.random.default_rng(0))
    assert caught.value.reason == "state"


def test_a_delta_and_residual_that_overflow_together_stay_finite() -> None:
    layout = layout_of(2)
    codec = make_codec("topk:0.5+f32")
    delta = np.array([3e38, 2e38], np.float32)
    state = {RESIDUAL: np.array([3e38, -1e38], np.float32)}
    encoded, state = codec.encode(delta, state, np.random.default_rng(0))
    assert codec.decode(encoded.payload, layout).tolist() == [float(np.finfo(np.float32).max), 0]
    assert state[RESIDUAL].tolist() == pytest.approx([0, 1e38])
