from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import Krum as FlwrKrum
from flwr.serverapp.strategy import MultiKrum as FlwrMultiKrum
from hypothesis import given
from hypothesis import strategies as st

from aggregation.contracts import AggregatorOptions
from aggregation.krum import Krum, MultiKrum, rank
from fedge.errors import AggregationError
from fedge.params import Vector
from tests.unit.aggregation.helpers import OPTIONS, vectors
from tests.unit.aggregation.update_files import (
    Rows,
    aggregate,
    flwr_delta,
    gaussian,
    with_liars,
)

sizes = st.sampled_from([(3, 0.0), (5, 0.2), (7, 0.3), (10, 0.3), (12, 0.25)])


def plain_scores(deltas: Rows, f: int) -> list[float]:
    exact = deltas.astype(np.float64)
    scores = []
    for i, one in enumerate(exact):
        others = sorted(float(np.sum((one - exact[j]) ** 2)) for j in range(len(exact)) if j != i)
        scores.append(sum(others[: len(exact) - f - 2]))
    return scores


def options(fraction: float) -> AggregatorOptions:
    return AggregatorOptions(malicious_fraction=fraction)


@given(sizes, st.integers(0, 999))
def test_krum_is_the_update_with_the_closest_company(size: tuple[int, float], seed: int) -> None:
    count, fraction = size
    deltas = gaussian(count, 20, seed)
    scores = plain_scores(deltas, int(fraction * count))
    found = aggregate(Krum(options(fraction)), deltas)
    # With one neighbour to count the closest two have the same score.
    best = [i for i, score in enumerate(scores) if score < min(scores) * 1.00001]
    expected = min(best, key=lambda i: float(np.sum((deltas - deltas[i]) ** 2)))
    np.testing.assert_array_equal(found, deltas[expected])


@given(sizes, st.integers(0, 999))
def test_multi_krum_is_the_mean_of_the_n_minus_f_minus_2_best(
    size: tuple[int, float], seed: int
) -> None:
    count, fraction = size
    f = int(fraction * count)
    deltas = gaussian(count, 20, seed)
    if count - f - 2 == 1:
        return  # Krum
    best = np.argsort(plain_scores(deltas, f))[: count - f - 2]
    found = aggregate(MultiKrum(options(fraction)), deltas)
    np.testing.assert_allclose(found, deltas[best].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(("count", "f"), [(5, 1), (10, 2), (21, 4)])
def test_flower_chooses_the_same_updates(count: int, f: int) -> None:
    # Flower weighs what it chose by examples, of which all replies have the same here.
    deltas = gaussian(count, 50, seed=count)
    krum = flwr_delta(FlwrKrum(num_malicious_nodes=f), deltas)
    multi = flwr_delta(
        FlwrMultiKrum(num_malicious_nodes=f, num_nodes_to_select=count - f - 2), deltas
    )
    np.testing.assert_array_equal(aggregate(Krum(OPTIONS), deltas), krum)
    np.testing.assert_allclose(aggregate(MultiKrum(OPTIONS), deltas), multi, atol=1e-6)


@pytest.mark.parametrize("method", [Krum, MultiKrum])
@given(delta=vectors, count=st.integers(3, 9))
def test_identical_updates_give_that_update(
    method: type[Krum] | type[MultiKrum], delta: Vector, count: int
) -> None:
    found = aggregate(method(OPTIONS), np.tile(delta, (count, 1)))
    np.testing.assert_allclose(found, delta, rtol=1e-6)


@pytest.mark.parametrize("method", [Krum, MultiKrum])
def test_who_sent_which_update_does_not_matter(method: type[Krum] | type[MultiKrum]) -> None:
    for seed in range(10):
        deltas = gaussian(10, 30, seed)
        order = np.random.default_rng(seed).permutation(10)
        found = aggregate(method(OPTIONS), deltas[order])
        np.testing.assert_allclose(found, aggregate(method(OPTIONS), deltas), atol=1e-6)


@pytest.mark.parametrize("method", [Krum, MultiKrum])
def test_it_moves_and_scales_with_the_updates(method: type[Krum] | type[MultiKrum]) -> None:
    deltas, shift = gaussian(11, 30), gaussian(1, 30, seed=5)[0]
    expected = aggregate(method(OPTIONS), deltas)
    np.testing.assert_allclose(
        aggregate(method(OPTIONS), deltas + shift), expected + shift, atol=1e-5
    )
    np.testing.assert_allclose(
        aggregate(method(OPTIONS), np.float32(-1e-4) * deltas), -1e-4 * expected, atol=1e-9
    )


@pytest.mark.parametrize("method", [Krum, MultiKrum])
@pytest.mark.parametrize("scale", [10.0, 1e6, 1e17])
def test_the_assumed_liars_are_never_chosen(
    method: type[Krum] | type[MultiKrum], scale: float
) -> None:
    honest = gaussian(8, 50)
    found = aggregate(method(OPTIONS), with_liars(honest, 2, scale))
    assert np.all(found >= honest.min(axis=0))
    assert np.all(found <= honest.max(axis=0))


def test_staleness_weighs_what_multi_krum_chose_and_does_not_change_the_choice() -> None:
    deltas = gaussian(5, 20, seed=3)
    discounts = np.array([0.1, 0.9, 0.3, 1.0, 0.5])
    best = np.argsort(plain_scores(deltas, 1))[:2]
    expected = np.average(deltas[best], axis=0, weights=discounts[best])
    found = aggregate(MultiKrum(OPTIONS), deltas, discounts=list(discounts))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    single = aggregate(Krum(OPTIONS), deltas, discounts=list(discounts))
    np.testing.assert_array_equal(single, deltas[best[0]])


@pytest.mark.parametrize(("name", "method"), [("krum", Krum), ("multi-krum", MultiKrum)])
def test_too_few_updates_are_refused(name: str, method: type[Krum] | type[MultiKrum]) -> None:
    with pytest.raises(AggregationError, match=f"{name} needs 3 updates .* has 2"):
        aggregate(method(OPTIONS), gaussian(2, 4))
    with pytest.raises(AggregationError, match=f"{name} needs 11 updates .* 4 hostile"):
        aggregate(method(options(0.45)), gaussian(10, 4))


def test_of_the_closest_two_the_one_closer_to_all_goes_first() -> None:
    places = np.array([10.0, 1.0, 0.0])
    assert rank((places[:, None] - places) ** 2, 0).tolist() == [1, 2, 0]


def test_one_update_alone_goes_first() -> None:
    assert rank(np.zeros((1, 1)), 0).tolist() == [0]
