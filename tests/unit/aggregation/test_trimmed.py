from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import FedTrimmedAvg
from hypothesis import given
from hypothesis import strategies as st

from aggregation.contracts import AggregatorOptions
from aggregation.trimmed import TrimmedMean
from fedge.errors import AggregationError
from fedge.params import Vector
from tests.unit.aggregation.helpers import OPTIONS, vectors
from tests.unit.aggregation.update_files import (
    Rows,
    aggregate,
    flwr_delta,
    gaussian,
    matrices,
    with_liars,
)


def trimmed(deltas: Rows, fraction: float = 0.2) -> Vector:
    return aggregate(TrimmedMean(AggregatorOptions(malicious_fraction=fraction)), deltas)


@given(matrices(), st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.4, 0.49]))
def test_it_is_the_mean_of_what_is_left_of_each_sorted_column(
    deltas: Rows, fraction: float
) -> None:
    count = len(deltas)
    cut = int(fraction * 100) * count // 100
    expected = [np.mean(sorted(map(float, column))[cut : count - cut]) for column in deltas.T]
    np.testing.assert_allclose(trimmed(deltas, fraction), expected, rtol=1e-5, atol=1e-3)


def test_flower_cuts_as_many_values_on_either_side() -> None:
    for count, beta in ((1, 0.2), (9, 0.2), (10, 0.2), (13, 0.45)):
        deltas = gaussian(count, 40, seed=count)
        expected = flwr_delta(FedTrimmedAvg(beta=beta), deltas)
        np.testing.assert_allclose(trimmed(deltas, beta), expected, rtol=1e-5, atol=1e-6)


@given(vectors, st.integers(1, 9))
def test_identical_updates_give_that_update(delta: Vector, count: int) -> None:
    np.testing.assert_allclose(trimmed(np.tile(delta, (count, 1))), delta, rtol=1e-6)


@given(matrices(min_rows=2), st.integers(0, 99))
def test_who_sent_which_update_does_not_matter(deltas: Rows, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(deltas))
    np.testing.assert_array_equal(trimmed(deltas[order]), trimmed(deltas))


def test_it_moves_and_scales_with_the_updates() -> None:
    deltas, shift = gaussian(11, 30), gaussian(1, 30, seed=5)[0]
    np.testing.assert_allclose(trimmed(deltas + shift), trimmed(deltas) + shift, atol=1e-5)
    np.testing.assert_allclose(trimmed(-4 * deltas), -4 * trimmed(deltas), atol=1e-5)


def test_the_assumed_liars_cannot_leave_the_range_of_the_honest() -> None:
    honest = gaussian(8, 50)
    found = trimmed(with_liars(honest, 2))
    assert np.all(found >= honest.min(axis=0))
    assert np.all(found <= honest.max(axis=0))


def test_staleness_and_examples_do_not_count() -> None:
    deltas = gaussian(5, 8)
    found = aggregate(TrimmedMean(OPTIONS), deltas, discounts=[1, 0.5, 0.1, 1, 0.3])
    np.testing.assert_array_equal(found, trimmed(deltas))


def test_a_trimmed_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no update"):
        trimmed(np.zeros((0, 5), np.float32))
