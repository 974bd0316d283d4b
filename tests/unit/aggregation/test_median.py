from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation import median as median_module
from aggregation.contracts import ClientUpdate
from aggregation.median import CoordinateMedian
from aggregation.spill import SpilledUpdates
from fedge.errors import AggregationError
from fedge.params import Layout, Vector
from tests.unit.aggregation.helpers import CONTEXT, LAYOUT, cohorts, vectors


def median(updates: list[ClientUpdate], folder: Path, layout: Layout = LAYOUT) -> Vector:
    spilled = SpilledUpdates(layout, folder)
    try:
        for update in updates:
            spilled.append(update)
        delta, memory = CoordinateMedian().finish(spilled, layout, CONTEXT)
    finally:
        spilled.close()
    assert memory == {}
    return delta


@given(cohorts)
def test_the_median_equals_numpys(tmp_path: Path, updates: list[ClientUpdate]) -> None:
    expected = np.median(np.stack([update.delta for update in updates]), axis=0)
    found = median(updates, tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@given(cohorts, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_a_bit(
    tmp_path: Path, updates: list[ClientUpdate], random: Random
) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert median(shuffled, tmp_path).tobytes() == median(updates, tmp_path).tobytes()


@given(vectors, st.integers(1, 9))
def test_identical_updates_give_that_update(tmp_path: Path, delta: Vector, count: int) -> None:
    updates = [ClientUpdate(client, delta, 1.0 + client) for client in range(count)]
    np.testing.assert_array_equal(median(updates, tmp_path), delta)


def test_a_minority_of_liars_cannot_leave_the_range_of_the_honest(tmp_path: Path) -> None:
    honest = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)
    liars = np.full((5, 5), 1e20, np.float32)
    rows = np.concatenate([honest, liars])
    found = median([ClientUpdate(i, row, 1.0) for i, row in enumerate(rows)], tmp_path)
    assert np.all(found >= honest.min(axis=0))
    assert np.all(found <= honest.max(axis=0))


def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(2).standard_normal((7, 5)).astype(np.float32)
    updates = [ClientUpdate(i, row, 1.0) for i, row in enumerate(rows)]
    whole = median(updates, tmp_path)
    monkeypatch.setattr(median_module, "_CHUNK_BYTES", 7 * 4 * 2)
    np.testing.assert_array_equal(median(updates, tmp_path), whole)


def test_a_median_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AggregationError, match="no update"):
        median([], tmp_path)
