from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import Bulyan as FlwrBulyan
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from hypothesis import given
from hypothesis import strategies as st

from aggregation.bulyan import Bulyan, mean_around_median, select
from aggregation.contracts import AggregatorOptions
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


def plain_distances(deltas: Rows) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    exact = deltas.astype(np.float64)
    return np.array([[np.sum((a - b) ** 2) for b in exact] for a in exact])


def plain_select(deltas: Rows, f: int) -> list[int]:
    """Run Krum on what is left, take its choice out, until N − 2f are chosen."""
    distances = plain_distances(deltas)
    left = list(range(len(deltas)))
    chosen: list[int] = []
    while len(chosen) < len(deltas) - 2 * f:
        near = max(1, len(left) - f - 2)
        scores = [
            # The closest two tie where one neighbour counts: then all distances do.
            (sum(sorted(distances[i, j] for j in left if j != i)[:near]), distances[i, left].sum())
            for i in left
        ]
        chosen.append(left.pop(scores.index(min(scores))))
    return sorted(chosen)


def plain_mean(rows: Rows, num_kept: int) -> list[float]:
    means = []
    for column in rows.T.astype(np.float64):
        median = np.median(column)
        means.append(np.mean(sorted(column, key=lambda value: abs(value - median))[:num_kept]))
    return means


def bulyan(deltas: Rows, fraction: float = 0.2) -> Vector:
    return aggregate(Bulyan(AggregatorOptions(malicious_fraction=fraction)), deltas)


@pytest.mark.parametrize(("count", "f"), [(3, 0), (7, 1), (12, 2), (15, 3)])
def test_it_selects_by_krum_one_after_another(count: int, f: int) -> None:
    for seed in range(5):
        deltas = gaussian(count, 30, seed)
        assert select(plain_distances(deltas), f).tolist() == plain_select(deltas, f)


@given(st.integers(1, 12), st.integers(0, 999), st.data())
def test_it_averages_the_values_closest_to_each_median(
    count: int, seed: int, data: st.DataObject
) -> None:
    num_kept = data.draw(st.integers(1, count))
    rows = gaussian(count, 25, seed)
    if num_kept < count and (count - num_kept) % 2 and count % 2 == 0:
        num_kept += 1  # the middle two are equally close to their mean: either may be kept
    expected = plain_mean(rows, num_kept)
    flower = aggregate_n_closest_weights(
        [np.median(rows, axis=0)], [[row] for row in rows], num_kept
    )
    found = mean_around_median(rows.copy(), num_kept)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found, flower[0], atol=1e-5)


@pytest.mark.parametrize(("count", "fraction"), [(7, 0.15), (12, 0.2), (15, 0.2)])
def test_both_steps_together_equal_a_plain_implementation(count: int, fraction: float) -> None:
    f = int(count * fraction)
    deltas = gaussian(count, 40, seed=count)
    expected = plain_mean(deltas[plain_select(deltas, f)], count - 4 * f)
    np.testing.assert_allclose(bulyan(deltas, fraction), expected, atol=1e-5)


def test_flower_agrees_where_one_scoring_selects_the_same_updates() -> None:
    # Flower scores once and keeps the best N − 2f; the paper scores those left anew after each
    # choice. Where the liars stand far apart from each other and from all, both leave them out.
    honest = gaussian(5, 40) * np.float32(0.1)
    liars = gaussian(2, 40, seed=9) * np.float32(1e3)
    deltas = np.concatenate([liars[:1], honest, liars[1:]])
    expected = flwr_delta(FlwrBulyan(num_malicious_nodes=1), deltas)
    np.testing.assert_allclose(bulyan(deltas, 0.15), expected, atol=1e-5)


@given(vectors, st.sampled_from([3, 4, 7, 9]))
def test_identical_updates_give_that_update(delta: Vector, count: int) -> None:
    np.testing.assert_allclose(bulyan(np.tile(delta, (count, 1))), delta, rtol=1e-6)


@given(matrices(min_rows=7, max_rows=9))
def test_every_value_lies_within_the_range_of_the_updates(deltas: Rows) -> None:
    found = bulyan(deltas, 0.12)
    slack = 1e-6 * np.abs(deltas).max()
    assert np.all(found >= deltas.min(axis=0) - slack)
    assert np.all(found <= deltas.max(axis=0) + slack)


def test_who_sent_which_update_does_not_matter() -> None:
    for seed in range(10):
        deltas = gaussian(11, 30, seed)
        order = np.random.default_rng(seed).permutation(11)
        np.testing.assert_allclose(bulyan(deltas[order]), bulyan(deltas), atol=1e-5)


def test_it_moves_and_scales_with_the_updates() -> None:
    deltas, shift = gaussian(11, 30), gaussian(1, 30, seed=5)[0]
    np.testing.assert_allclose(bulyan(deltas + shift), bulyan(deltas) + shift, atol=1e-5)
    np.testing.assert_allclose(bulyan(np.float32(-4) * deltas), -4 * bulyan(deltas), atol=1e-5)


@pytest.mark.parametrize("scale", [10.0, 1e6, 1e17])
def test_the_assumed_liars_cannot_leave_the_range_of_the_honest(scale: float) -> None:
    honest = gaussian(9, 50)
    found = bulyan(with_liars(honest, 2, scale))
    assert np.all(found >= honest.min(axis=0))
    assert np.all(found <= honest.max(axis=0))


def test_a_lie_in_one_coordinate_alone_is_cut_off() -> None:
    # Too little to be far from the others as a whole: Krum may select it, the median does not.
    deltas = gaussian(11, 10_000)
    deltas[:2, 0] = 50
    assert abs(bulyan(deltas)[0]) < 2


def test_staleness_and_examples_do_not_count() -> None:
    deltas = gaussian(7, 8)
    found = aggregate(Bulyan(AggregatorOptions(0.15)), deltas, discounts=[0.1, 1, 1, 1, 1, 1, 0.5])
    np.testing.assert_array_equal(found, bulyan(deltas, 0.15))


def test_too_few_updates_are_refused() -> None:
    with pytest.raises(AggregationError, match=r"bulyan needs 11 updates .* 2 hostile .* has 10"):
        aggregate(Bulyan(OPTIONS), gaussian(10, 4))
