from __future__ import annotations

import math

import numpy as np
import pytest

from aggregation.codecs import make_codec
from tests.unit.aggregation.codecs.oracles import heavy_tailed, layout_of

SHARES = pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])


@SHARES
def test_it_costs_its_share_of_a_bit(share: float) -> None:
    encoded = make_codec(f"signs:{share}").encode(
        heavy_tailed(4096 * 20), {}, np.random.default_rng(0)
    )[0]
    assert encoded.bits == pytest.approx(share, abs=0.01)
    assert encoded.distortion == pytest.approx(math.pi / (2 * share) - 1, rel=0.08)


@SHARES
def test_the_error_of_a_mean_over_clients_goes_away(share: float) -> None:
    delta = heavy_tailed(5000)
    codec, layout, rng = make_codec(f"signs:{share}"), layout_of(5000), np.random.default_rng(0)
    num_draws = 200
    mean = np.zeros(5000)
    for _ in range(num_draws):
        mean += codec.decode(codec.encode(delta, {}, rng)[0].payload, layout) / num_draws
    error = float(np.dot(mean - delta, mean - delta)) / float(np.dot(delta, delta))
    assert error <= 1.3 * (math.pi / (2 * share) - 1) / num_draws


@pytest.mark.parametrize("size", [1, 2, 50, 64, 65, 1000, 4096, 4097])
@pytest.mark.parametrize("places", [(0,), (0, -1), (0, 2048)])
def test_a_few_lone_values_do_not_blow_up(size: int, places: tuple[int, ...]) -> None:
    delta = np.zeros(size, np.float32)
    for place in places:
        delta[place % size] = 1
    codec, layout = make_codec("signs:0.5"), layout_of(size)
    for seed in range(20):
        encoded = codec.encode(delta, {}, np.random.default_rng(seed))[0]
        assert encoded.distortion <= 4 * math.pi
        assert np.linalg.norm(codec.decode(encoded.payload, layout)) <= 4 * math.pi


def test_behind_topk_the_chosen_stay_and_the_rest_is_estimated() -> None:
    delta = heavy_tailed(10_000)
    layout, rng = layout_of(10_000), np.random.default_rng(0)
    codec = make_codec("topk:0.01+f32+signs:0.5")
    encoded, state = codec.encode(delta, codec.init(layout), rng)
    decoded = codec.decode(encoded.payload, layout)
    order = np.argsort(-np.abs(delta))
    chosen, rest = order[:100], order[100:]
    assert state == {}
    assert decoded[chosen].tolist() == delta[chosen].tolist()
    assert np.dot(decoded[rest], delta[rest]) == pytest.approx(
        np.dot(delta[rest], delta[rest]), rel=0.05
    )


def test_top_1_percent_with_a_summary_is_still_40_times_smaller() -> None:
    codec = make_codec("topk:0.01+int8+signs:0.5")
    delta = heavy_tailed(1_000_000)
    assert 32 / codec.encode(delta, {}, np.random.default_rng(0))[0].bits >= 40
