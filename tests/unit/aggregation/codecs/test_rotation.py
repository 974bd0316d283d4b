from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import hadamard as scipy_hadamard

from aggregation.codecs import make_codec
from aggregation.codecs.rotation import BLOCK, hadamard, signs
from tests.unit.aggregation.codecs.oracles import heavy_tailed, layout_of

PINNED_SIGNS = "+--+++-+++-----++++++++++-++--+-"


@pytest.mark.parametrize("length", [1, 2, 4, 8, 32, 64, 128, 512, 4096])
def test_two_small_products_are_one_hadamard_matrix(length: int) -> None:
    rows = np.random.default_rng(0).integers(-9, 9, (3, length)).astype(np.float32)
    assert hadamard(rows).tolist() == (rows @ scipy_hadamard(length).T).tolist()


def test_twice_is_the_length_times_the_rows() -> None:
    rows = np.random.default_rng(0).integers(-9, 9, (2, 256)).astype(np.float32)
    assert hadamard(hadamard(rows)).tolist() == (256 * rows).tolist()


def test_signs_are_fair_and_the_same_everywhere() -> None:
    drawn = signs(2**63 - 1)
    assert set(drawn.tolist()) == {-1.0, 1.0}
    assert abs(drawn.sum()) < 5 * np.sqrt(BLOCK)
    # Pinned: what one machine encodes, another of another year must decode.
    assert "".join("+" if sign > 0 else "-" for sign in signs(12345)[:32]) == PINNED_SIGNS


@pytest.mark.parametrize("width", [4, 8])
def test_after_a_rotation_one_large_value_does_not_drown_the_others(width: int) -> None:
    delta = heavy_tailed(BLOCK)
    delta[7] = 500
    layout = layout_of(BLOCK)
    lost = {
        spec: make_codec(spec).encode(delta, {}, np.random.default_rng(0))[0].distortion
        for spec in (f"int{width}", f"rotate+int{width}")
    }
    assert lost[f"rotate+int{width}"] < 0.2 * lost[f"int{width}"]
    assert layout.size == BLOCK


@pytest.mark.parametrize("size", [1, 2, 3, 100, 4095, 4096, 4097, 9000])
def test_every_length_comes_back(size: int) -> None:
    delta = heavy_tailed(size)
    codec, layout = make_codec("rotate+int8"), layout_of(size)
    encoded = codec.encode(delta, {}, np.random.default_rng(0))[0]
    decoded = codec.decode(encoded.payload, layout)
    assert decoded.shape == (size,)
    assert np.linalg.norm(decoded - delta) <= 0.03 * np.linalg.norm(delta)


def test_the_mean_of_many_draws_is_the_delta() -> None:
    delta = heavy_tailed(48)
    codec, layout, rng = make_codec("rotate+int4"), layout_of(48), np.random.default_rng(1)
    assert codec.unbiased
    decoded = np.array(
        [codec.decode(codec.encode(delta, {}, rng)[0].payload, layout) for _ in range(4_000)]
    )
    sigma = decoded.std(axis=0) / np.sqrt(len(decoded))
    assert (np.abs(decoded.mean(axis=0) - delta) <= 5 * sigma).all()
