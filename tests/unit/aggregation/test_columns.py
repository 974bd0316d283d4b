from __future__ import annotations

import numpy as np
import pytest

from aggregation import columns
from aggregation.columns import chunks, combine
from tests.unit.aggregation.update_files import MemoryUpdates, gaussian


@pytest.mark.parametrize("num_updates", [1, 3, 100, 4096, 600_000])
def test_chunks_have_an_odd_width_and_stay_near_two_mebibytes(num_updates: int) -> None:
    width = columns._width(num_updates)
    assert width % 2 == 1
    assert 4 * num_updates * (width - 1) <= 2 * 1024 * 1024


def test_chunks_cover_every_coordinate_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 4 * 5 * 3)
    deltas = gaussian(5, 10)
    read = list(chunks(MemoryUpdates(deltas), 10))
    assert [(part.start, part.stop) for part, _ in read] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in read], axis=1), deltas)


def test_a_model_without_parameters_has_no_chunks() -> None:
    assert list(chunks(MemoryUpdates(np.zeros((3, 0))), 0)) == []


def test_a_combination_is_the_weighted_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 64)
    deltas, coefficients = gaussian(9, 50), np.random.default_rng(1).standard_normal(9)
    expected = coefficients @ deltas.astype(np.float64)
    found = combine(MemoryUpdates(deltas), 50, coefficients)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_one_update_alone_comes_back_bit_by_bit_whatever_the_others_are() -> None:
    deltas = gaussian(4, 33)
    deltas[2] = 3e38
    found = combine(MemoryUpdates(deltas), 33, np.array([0.0, 1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(found, deltas[1])
