from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.codecs import make_codec
from aggregation.codecs.quantize import StochasticGrid
from fedge.params import Vector
from tests.unit.aggregation.codecs.oracles import (
    decode_int8,
    deltas,
    heavy_tailed,
    layout_of,
    usual_deltas,
)

WIDTHS = pytest.mark.parametrize("width", [4, 8])


@WIDTHS
@given(delta=deltas, seed=st.integers(0, 2**32))
def test_no_value_is_off_by_more_than_a_step(width: int, delta: Vector, seed: int) -> None:
    codec, layout = make_codec(f"int{width}"), layout_of(len(delta))
    encoded, state = codec.encode(delta, codec.init(layout), np.random.default_rng(seed))
    decoded = codec.decode(encoded.payload, layout)
    largest = float(np.abs(delta).max(initial=0.0))
    step = largest / (2 ** (width - 1) - 1)
    error = np.abs(decoded.astype(np.float64) - delta)
    assert state == {}
    assert (error <= max(step * (1 + 2**-13), 2.0**-100)).all()


class LargestDraws:
    """A generator that always draws the largest number: one value in 65,536 meets it."""

    def integers(self, low: int, high: int, *, size: int, **_: object) -> npt.NDArray[np.uint64]:
        return np.full(size, high, np.uint64)


@WIDTHS
def test_the_largest_value_is_not_turned_around_by_the_largest_draw(width: int) -> None:
    rows = np.array([[1.0, 0.5, -1.0], [0.3, 0.1, -0.2]], np.float32)
    grid, draws = StochasticGrid(width), cast(np.random.Generator, LargestDraws())
    codes, scales = grid.quantize(rows, draws)
    error = np.abs(grid.levels(codes) * scales[:, np.newaxis] - rows)
    assert (error <= scales[:, np.newaxis] * (1 + 2**-13)).all()


@WIDTHS
def test_the_mean_of_many_draws_is_the_delta(width: int) -> None:
    delta = heavy_tailed(50)
    delta[:3] = [0.0, 1e-3, -1e-3]
    codec, layout, rng = make_codec(f"int{width}"), layout_of(50), np.random.default_rng(1)
    assert codec.unbiased
    num_draws = 4_000
    total = np.zeros(50)
    for _ in range(num_draws):
        total += codec.decode(codec.encode(delta, {}, rng)[0].payload, layout)
    step = float(np.abs(delta).max()) / (2 ** (width - 1) - 1)
    # A rounding's standard deviation is at most half a step; 5 sigma of the mean.
    assert np.abs(total / num_draws - delta).max() <= 5 * 0.5 * step / math.sqrt(num_draws)


@given(delta=usual_deltas)
def test_int8_bytes_mean_what_a_plain_reader_reads(delta: Vector) -> None:
    codec, layout = make_codec("int8"), layout_of(len(delta))
    payload = codec.encode(delta, {}, np.random.default_rng(0))[0].payload
    plain = decode_int8(payload, len(delta))
    np.testing.assert_allclose(codec.decode(payload, layout), plain, rtol=1e-6)


def test_int8_bytes_of_several_blocks_mean_what_a_plain_reader_reads() -> None:
    delta = heavy_tailed(4096 * 18 + 5)
    codec, layout = make_codec("int8"), layout_of(len(delta))
    payload = codec.encode(delta, {}, np.random.default_rng(0))[0].payload
    plain = decode_int8(payload, len(delta))
    np.testing.assert_allclose(codec.decode(payload, layout), plain, rtol=1e-6)


@WIDTHS
@given(levels=st.lists(st.integers(-7, 7), min_size=1, max_size=40))
def test_what_lies_on_the_grid_stays(width: int, levels: list[int]) -> None:
    largest = 2 ** (width - 1) - 1
    delta = np.array([*levels, largest], np.float32) * np.float32(0.25)
    codec, layout = make_codec(f"int{width}"), layout_of(len(delta))
    encoded = codec.encode(delta, {}, np.random.default_rng(0))[0]
    assert codec.decode(encoded.payload, layout).tolist() == delta.tolist()
    assert encoded.distortion == 0.0


@WIDTHS
def test_codes_never_leave_the_grid(width: int) -> None:
    grid = StochasticGrid(width)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 8)).astype(np.float32) * np.float32(3.3e38 / 6)
    codes, scales = grid.quantize(rows, rng)
    assert codes.min() >= 1
    assert codes.max() <= 2 * grid.largest + 1
    assert np.isfinite(scales).all()


@WIDTHS
def test_each_block_has_its_own_scale(width: int) -> None:
    delta = np.concatenate([np.full(4096, 1e-6), np.full(4096, 1e6)]).astype(np.float32)
    codec, layout = make_codec(f"int{width}"), layout_of(8192)
    decoded = codec.decode(codec.encode(delta, {}, np.random.default_rng(0))[0].payload, layout)
    np.testing.assert_allclose(decoded, delta, rtol=1e-6)


def test_int8_is_at_least_3_9_times_smaller() -> None:
    encoded = make_codec("int8").encode(heavy_tailed(10_000), {}, np.random.default_rng(0))[0]
    assert 32 / encoded.bits >= 3.9
