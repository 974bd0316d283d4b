from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
from flwr.serverapp.strategy import FedMedian
from hypothesis import given
from hypothesis import strategies as st

from aggregation import columns
from aggregation.contracts import ClientUpdate
from aggregation.median import CoordinateMedian
from aggregation.spill import SpilledUpdates
from fedge.errors import AggregationError
from fedge.params import Layout, Vector
from tests.unit.aggregation.helpers import (
    CONTEXT,
    LAYOUT,
    OPTIONS,
    client_update,
    cohorts,
    vectors,
)
from tests.unit.aggregation.update_files import (
    Rows,
    aggregate,
    flwr_delta,
    gaussian,
    matrices,
    with_liars,
)


def spilled_median(updates: list[ClientUpdate], folder: Path, layout: Layout = LAYOUT) -> Vector:
    with contextlib.closing(SpilledUpdates(layout, folder)) as spilled:
        for update in updates:
            spilled.append(update)
        delta, _ = CoordinateMedian(OPTIONS).finish(spilled, layout, CONTEXT)
    return delta


def median(deltas: Rows) -> Vector:
    return aggregate(CoordinateMedian(OPTIONS), deltas)


@given(matrices())
def test_the_median_equals_numpys(deltas: Rows) -> None:
    np.testing.assert_array_equal(median(deltas), np.median(deltas, axis=0))


def test_flower_finds_the_same_median() -> None:
    for count in (1, 8, 9):
        deltas = gaussian(count, 40, seed=count)
        np.testing.assert_array_equal(median(deltas), flwr_delta(FedMedian(), deltas))


@given(cohorts, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_a_bit(
    tmp_path: Path, updates: list[ClientUpdate], random: Random
) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert (
        spilled_median(shuffled, tmp_path).tobytes() == spilled_median(updates, tmp_path).tobytes()
    )


@given(vectors, st.integers(1, 9))
def test_identical_updates_give_that_update(delta: Vector, count: int) -> None:
    np.testing.assert_array_equal(median(np.tile(delta, (count, 1))), delta)


def test_a_minority_of_liars_cannot_leave_the_range_of_the_honest() -> None:
    honest = gaussian(6, 5)
    found = median(with_liars(honest, 5, scale=1e17))
    assert np.all(found >= honest.min(axis=0))
    assert np.all(found <= honest.max(axis=0))


def test_staleness_and_examples_do_not_count() -> None:
    deltas = gaussian(5, 8)
    found = aggregate(CoordinateMedian(OPTIONS), deltas, discounts=[1, 0.5, 0.1, 1, 0.3])
    np.testing.assert_array_equal(found, median(deltas))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = gaussian(7, 50)
    whole = median(deltas)
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 7 * 4 * 2)
    np.testing.assert_array_equal(median(deltas), whole)


def test_spilled_updates_have_the_same_median_as_those_in_memory(tmp_path: Path) -> None:
    deltas = gaussian(7, LAYOUT.size)
    updates = [client_update(client, delta, 1.0) for client, delta in enumerate(deltas)]
    np.testing.assert_array_equal(spilled_median(updates, tmp_path), median(deltas))


def test_a_median_of_nothing_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no update"):
        median(np.zeros((0, 5), np.float32))
