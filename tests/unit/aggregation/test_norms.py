from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.norms import norm_of, tensor_of
from fedge.params import Vector

moderate = st.floats(-(2.0**59), 2.0**59, width=32)


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=moderate))
def test_the_norm_of_moderate_values_is_numpys(vector: Vector) -> None:
    expected = np.linalg.norm(vector.astype(np.float64))
    assert norm_of(vector) == pytest.approx(expected, rel=1e-6, abs=1e-18)


@given(hnp.arrays(np.float32, st.integers(1, 40)))
def test_the_norm_is_finite_only_if_every_value_is(vector: Vector) -> None:
    if not np.isfinite(vector).all():
        assert not np.isfinite(norm_of(vector))


@pytest.mark.parametrize("size", [8191, 8192, 8193, 1_000_003])
def test_the_norm_is_right_across_rows_in_little_memory(size: int) -> None:
    vector = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    tracemalloc.start()
    found = norm_of(vector)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == pytest.approx(np.linalg.norm(vector.astype(np.float64)), rel=1e-6)
    assert peak < 64 * 1024


def test_a_view_of_received_bytes_is_read_without_a_warning() -> None:
    received = np.frombuffer(np.ones(9, np.float32).tobytes(), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert norm_of(received) == pytest.approx(3.0)
        assert tensor_of(received).sum().item() == 9
