from __future__ import annotations

import numpy as np
import pytest

from benchmarks import codec
from benchmarks.harness import MODULES


def test_quick_run_reports_every_codec_and_reaches_the_bars() -> None:
    assert MODULES["codec"] == codec.__name__
    result = codec.measure(quick=True)
    assert result["int8_ratio"] >= 3.9
    assert result["topk5_ratio"] >= 10
    assert result["topk1_ratio"] >= 40
    by_spec = result["codecs"]["100k"]
    assert set(by_spec) == set(codec.SPECS)
    for figures in by_spec.values():
        assert set(figures) == {"bits_per_parameter", "encode_s", "decode_s", "distortion"}
    assert by_spec["raw"] == {**by_spec["raw"], "bits_per_parameter": 32.0, "distortion": 0.0}
    assert result["int8_ratio"] == pytest.approx(32 / by_spec["int8"]["bits_per_parameter"])


def test_the_delta_is_heavy_tailed_and_the_same_each_time() -> None:
    delta = codec.heavy_tailed(200_000)
    assert np.array_equal(delta, codec.heavy_tailed(200_000))
    assert np.abs(delta).max() > 20 * delta.std()
