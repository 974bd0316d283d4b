from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from aggregation.codecs import make_codec
from aggregation.codecs.eden import EdenGrid
from fedge.errors import ConfigError
from tests.unit.aggregation.codecs.oracles import heavy_tailed, layout_of

# Error of Lloyd and Max's quantiser of a unit normal, from Max (1960), table I.
MAX_ERROR = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
BITS = pytest.mark.parametrize("bits", [1, 2, 3, 4])


@BITS
def test_each_level_is_the_mean_of_its_cell(bits: int) -> None:
    grid = EdenGrid(str(bits))
    levels = grid.levels(np.arange(2**bits, dtype=np.uint8)) / 512
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    means = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))
    np.testing.assert_allclose(levels, means, atol=2e-3)


@BITS
def test_codes_name_the_nearest_level(bits: int) -> None:
    grid = EdenGrid(str(bits))
    row = np.random.default_rng(0).standard_normal((1, 500)).astype(np.float32)
    codes, _ = grid.quantize(row, np.random.default_rng(0))
    levels = grid.levels(np.arange(2**bits, dtype=np.uint8)) / 512
    sigma = math.sqrt(float((row.astype(np.float64) ** 2).mean()))
    for value, code in zip(row[0].tolist(), codes[0].tolist(), strict=True):
        distances = [abs(value / sigma - level) for level in levels.tolist()]
        assert distances[code] <= min(distances) + 1e-6


@BITS
def test_distortion_is_that_of_the_quantiser_with_an_unbiased_scale(bits: int) -> None:
    encoded = make_codec(f"rotate+eden:{bits}").encode(
        heavy_tailed(4096 * 20), {}, np.random.default_rng(0)
    )[0]
    # The scale that keeps <decoded, x> at |x|^2 turns an error e into e / (1 - e).
    expected = MAX_ERROR[bits] / (1 - MAX_ERROR[bits])
    assert encoded.distortion == pytest.approx(expected, rel=0.05)
    assert encoded.bits == pytest.approx(bits, abs=0.02)


@BITS
def test_the_decoded_vector_has_the_deltas_own_length_along_it(bits: int) -> None:
    delta = heavy_tailed(4096)
    codec, layout = make_codec(f"rotate+eden:{bits}"), layout_of(4096)
    decoded = codec.decode(codec.encode(delta, {}, np.random.default_rng(3))[0].payload, layout)
    along = float(np.dot(decoded.astype(np.float64), delta))
    assert along == pytest.approx(float(np.dot(delta.astype(np.float64), delta)), rel=1e-4)


def test_the_mean_of_many_clients_comes_close_although_each_sends_one_bit() -> None:
    delta = heavy_tailed(4096)
    codec, layout, rng = make_codec("rotate+eden:1"), layout_of(4096), np.random.default_rng(0)
    assert not codec.unbiased
    num_draws = 200
    mean = sum(
        codec.decode(codec.encode(delta, {}, rng)[0].payload, layout) for _ in range(num_draws)
    )
    error = np.linalg.norm(mean / num_draws - delta) ** 2 / np.linalg.norm(delta) ** 2
    assert error <= 1.2 * 0.57 / num_draws


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_scale_does_not_matter(scale: float) -> None:
    delta = heavy_tailed(4096) * np.float32(scale)
    encoded = make_codec("rotate+eden:2").encode(delta, {}, np.random.default_rng(0))[0]
    assert encoded.distortion == pytest.approx(0.133, abs=0.01)


@pytest.mark.parametrize("option", ["", "0", "5", "1.0", "one", "11"])
def test_other_widths_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="1 to 4 bits"):
        EdenGrid(option)
