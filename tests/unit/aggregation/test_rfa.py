from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.rfa import GeometricMedian
from fedge.errors import AggregationError
from fedge.params import Vector
from tests.unit.aggregation.helpers import OPTIONS, vectors
from tests.unit.aggregation.update_files import Rows, aggregate, gaussian, matrices, with_liars


def rfa(deltas: Rows) -> Vector:
    return aggregate(GeometricMedian(OPTIONS), deltas)


def plain_weights(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weiszfeld's algorithm on the points themselves."""
    weights = np.full(len(points), 1 / len(points))
    for _ in range(2000):
        distances = np.linalg.norm(points - weights @ points, axis=1)
        pulls = 1 / np.maximum(distances, 1e-9)
        weights = pulls / pulls.sum()
    return weights


def total_distance(points: Rows, centre: Vector) -> float:
    exact = points.astype(np.float64)
    return float(np.linalg.norm(exact - centre.astype(np.float64), axis=1).sum())


@pytest.mark.parametrize("count", [3, 8, 25])
def test_it_equals_weiszfelds_algorithm_on_the_points(count: int) -> None:
    deltas = gaussian(count, 40, seed=count) * np.geomspace(1, 30, count, dtype=np.float32)[:, None]
    exact = deltas.astype(np.float64)
    np.testing.assert_allclose(rfa(deltas), plain_weights(exact) @ exact, atol=2e-4)


@given(matrices(min_rows=3))
def test_no_update_nor_their_mean_has_a_smaller_sum_of_distances(deltas: Rows) -> None:
    norms = np.linalg.norm(deltas.astype(np.float64), axis=1)
    if norms.max() > 900 * np.sort(norms)[(len(norms) - 1) // 2]:
        return  # shortened before the median is taken
    found = total_distance(deltas, rfa(deltas))
    best = min(total_distance(deltas, point) for point in (*deltas, deltas.mean(axis=0)))
    assert found <= best * 1.01 + 1e-3 * norms.max()


@given(vectors, st.integers(1, 9))
def test_identical_updates_give_that_update(delta: Vector, count: int) -> None:
    np.testing.assert_allclose(rfa(np.tile(delta, (count, 1))), delta, rtol=1e-6)


def test_who_sent_which_update_does_not_matter() -> None:
    for seed in range(10):
        deltas = gaussian(9, 30, seed)
        order = np.random.default_rng(seed).permutation(9)
        np.testing.assert_allclose(rfa(deltas[order]), rfa(deltas), atol=1e-5)


def test_it_moves_and_scales_with_the_updates() -> None:
    deltas, shift = gaussian(11, 30), gaussian(1, 30, seed=5)[0]
    np.testing.assert_allclose(rfa(deltas + shift), rfa(deltas) + shift, atol=1e-5)
    np.testing.assert_allclose(rfa(np.float32(-1e-6) * deltas), -1e-6 * rfa(deltas), atol=1e-11)


@pytest.mark.parametrize("scale", [10.0, 1e3, 1e6, 1e17])
def test_a_minority_of_liars_moves_it_by_less_than_the_honest_spread(scale: float) -> None:
    # A minority q of unit pulls is balanced by the honest at q / (1 − 2q) or so of their spread.
    honest = gaussian(8, 50)
    spread = float(np.linalg.norm(honest - honest.mean(axis=0), axis=1).mean())
    moved = rfa(with_liars(honest, 2, scale)) - rfa(honest)
    assert np.linalg.norm(moved) < 0.5 * spread
    np.testing.assert_allclose(moved, rfa(with_liars(honest, 2, 1e3)) - rfa(honest), atol=0.02)


def test_a_majority_at_one_point_is_the_geometric_median() -> None:
    deltas = gaussian(7, 20)
    deltas[:4] = 1
    np.testing.assert_allclose(rfa(deltas), np.ones(20), atol=1e-3)


def test_when_most_clients_learnt_nothing_neither_does_the_round() -> None:
    deltas = gaussian(5, 20)
    deltas[:3] = 0
    np.testing.assert_allclose(rfa(deltas), np.zeros(20), atol=1e-3)


def test_staleness_scales_the_weights_that_were_found() -> None:
    deltas, discounts = gaussian(4, 20), np.array([1.0, 0.1, 0.5, 1.0])
    exact = deltas.astype(np.float64)
    weights = plain_weights(exact) * discounts
    found = aggregate(GeometricMedian(OPTIONS), deltas, discounts=list(discounts))
    np.testing.assert_allclose(found, weights / weights.sum() @ exact, atol=1e-4)


def test_a_geometric_median_of_nothing_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no update"):
        rfa(np.zeros((0, 5), np.float32))
