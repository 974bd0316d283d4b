from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from aggregation import columns
from aggregation.columns import combine, map_chunks, reduce_columns
from fedge.errors import AggregationError
from tests.unit.aggregation.update_files import MemoryUpdates, Rows, gaussian


@pytest.mark.parametrize("num_updates", [1, 3, 100, 4096, 600_000])
def test_chunks_have_an_odd_width_and_stay_near_two_mebibytes(num_updates: int) -> None:
    width = columns._width(num_updates)
    assert width % 2 == 1
    assert 4 * num_updates * (width - 1) <= 2 * 1024 * 1024


def test_chunks_cover_every_coordinate_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 4 * 5 * 3)
    deltas = gaussian(5, 10)
    read = list(map_chunks(MemoryUpdates(deltas), 10, lambda part, rows: (part, rows)))
    assert [(part.start, part.stop) for part, _ in read] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in read], axis=1), deltas)


def test_a_model_without_parameters_has_no_chunks() -> None:
    assert list(map_chunks(MemoryUpdates(np.zeros((3, 0))), 0, lambda part, _: part)) == []


def test_results_keep_the_order_of_the_coordinates_whichever_chunk_is_done_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    later = threading.Event()

    def work(part: slice, _: Rows) -> int:
        if part.start == 0:
            assert later.wait(timeout=30)
        later.set()
        return int(part.start)

    assert list(map_chunks(MemoryUpdates(gaussian(1, 3)), 3, work)) == [0, 1, 2]


def test_few_results_wait_to_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    begun: list[int] = []
    updates = MemoryUpdates(gaussian(1, 99))
    results = map_chunks(updates, 99, lambda part, _: begun.append(part.start))
    for taken, _ in enumerate(results, 1):
        assert len(begun) <= taken + 2 * 2
    assert len(begun) == 99


def test_what_goes_wrong_in_a_chunk_is_raised() -> None:
    def work(part: slice, _: Rows) -> int:
        raise AggregationError("the disk is gone")

    with pytest.raises(AggregationError, match="the disk is gone"):
        list(map_chunks(MemoryUpdates(gaussian(2, 3)), 3, work))


def test_columns_are_reduced_over_the_chosen_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 64)
    deltas, chosen = gaussian(6, 50), np.array([4, 1])
    found = reduce_columns(MemoryUpdates(deltas), 50, lambda rows: rows[0] - rows[1], chosen)
    np.testing.assert_array_equal(found, deltas[4] - deltas[1])


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
