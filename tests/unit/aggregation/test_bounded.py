from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.bounded import BoundedMean
from aggregation.centred import CentredClipping
from aggregation.contracts import (
    AggregatorOptions,
    ClientUpdate,
    Memory,
    RoundContext,
    StreamingAggregator,
)
from aggregation.norms import norm_of
from fedge.errors import AggregationError
from fedge.params import Layout, Vector
from tests.unit.aggregation.helpers import (
    LAYOUT,
    OPTIONS,
    client_update,
    close,
    cohorts,
    largest,
    vectors,
)

Wide = npt.NDArray[np.float64]
METHODS: list[Any] = [BoundedMean, CentredClipping]
MEMORY: Memory = {
    "median_distance": 20.0,
    "median_weight": 30.0,
    "centre": np.array([1, -2, 3, -4, 5], np.float32),
}


def run(
    method: StreamingAggregator[Any], updates: list[ClientUpdate], memory: Memory
) -> tuple[Vector, Memory]:
    state = method.init(LAYOUT, RoundContext(2, memory=memory))
    for update in updates:
        state = method.add(state, update)
    return method.finish(state)


def oracle(updates: list[ClientUpdate], memory: Memory, centre: Wide) -> Wide:
    """The definition, in float64: a weighted mean of offsets that are scaled to the bound."""
    offsets = [update.delta.astype(np.float64) - centre for update in updates]
    distances = [float(np.linalg.norm(offset)) for offset in offsets]
    bound = memory.get("median_distance", 0.0)
    scaled, weights = [], []
    for update, offset, distance in zip(updates, offsets, distances, strict=True):
        if bound:
            factor = min(1.0, bound / distance) if distance else 1.0
        else:
            # So short an update is no direction: float32 has lost its norm.
            factor = float(np.median(distances)) / distance if distance > 1e-15 else 0.0
        scaled.append(offset * factor)
        cap = 2 * memory.get("median_weight", 0.0)
        weights.append((min(update.num_examples, cap) if cap else 1.0) * update.discount)
    return centre + np.average(scaled, axis=0, weights=weights)


@given(cohorts, st.booleans())
def test_both_equal_their_definition(updates: list[ClientUpdate], first: bool) -> None:
    memory: Memory = {} if first else MEMORY
    for method in METHODS:
        centred = method is CentredClipping and not first
        centre = MEMORY["centre"].astype(np.float64) if centred else np.zeros(LAYOUT.size)
        delta, _ = run(method(OPTIONS), updates, memory)
        assert delta.dtype == np.float32
        assert close(delta, oracle(updates, memory, centre), largest(updates) + 50)


@given(cohorts, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(updates: list[ClientUpdate], random: Any) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    for method in METHODS:
        left, right = (run(method(OPTIONS), order, MEMORY) for order in (updates, shuffled))
        assert close(left[0], right[0], largest(updates) + 50)
        assert left[1]["median_distance"] == right[1]["median_distance"]


@given(cohorts, cohorts)
def test_partial_aggregates_merge(first: list[ClientUpdate], second: list[ClientUpdate]) -> None:
    for kind in METHODS:
        method: Any = kind(OPTIONS)
        states = []
        for part in (first, second):
            state = method.init(LAYOUT, RoundContext(2, memory=MEMORY))
            for update in part:
                state = method.add(state, update)
            states.append(state)
        merged, memory = method.finish(method.merge(*states))
        whole, expected = run(method, [*first, *second], MEMORY)
        assert close(merged, whole, largest([*first, *second]) + 50)
        assert memory["median_distance"] == expected["median_distance"]
        assert memory["median_weight"] == expected["median_weight"]


@given(vectors, st.integers(1, 9))
def test_identical_updates_give_that_update(delta: Vector, number: int) -> None:
    updates = [client_update(client, delta, 5.0) for client in range(number)]
    for method in METHODS:
        assert close(run(method(OPTIONS), updates, {})[0], delta, largest(updates))


@pytest.mark.parametrize("method", METHODS)
def test_one_hostile_client_moves_the_result_by_no_more_than_its_bound(method: Any) -> None:
    rng = np.random.default_rng(0)
    honest = [
        client_update(i, rng.standard_normal(5).astype(np.float32), 30.0) for i in range(1, 10)
    ]
    _, memory = run(method(OPTIONS), honest, {})
    clean, _ = run(method(OPTIONS), honest, memory)
    hostile = client_update(0, np.full(5, 1e9, np.float32), 1e6)
    attacked, after = run(method(OPTIONS), [hostile, *honest], memory)
    # Weight at most 2 of 11 medians; the clean mean itself lies within the bound of the centre.
    assert np.linalg.norm(attacked - clean) <= 2 * memory["median_distance"] * 2 / 11 * 1.0001
    assert after["median_distance"] <= 2 * memory["median_distance"]
    assert after["median_weight"] == 30.0


@pytest.mark.parametrize("method", METHODS)
def test_the_first_round_is_bounded_too(method: Any) -> None:
    ones = np.ones(5, np.float32)
    updates = [client_update(i, ones, 10.0) for i in range(4)]
    updates.append(client_update(9, np.full(5, -1e9, np.float32), 1e6))
    delta, _ = run(method(OPTIONS), updates, {})
    np.testing.assert_allclose(delta, np.full(5, 0.6), rtol=1e-5)


def test_a_fixed_bound_overrides_the_median() -> None:
    method = BoundedMean(AggregatorOptions(norm_bound=1.0))
    delta, _ = run(method, [client_update(1, np.array([3, 0, 0, 4, 0], np.float32), 9.0)], MEMORY)
    np.testing.assert_allclose(delta, [0.6, 0, 0, 0.8, 0], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_of_zero_updates_does_not_fix_the_bound_at_zero(method: Any) -> None:
    _, memory = run(method(OPTIONS), [client_update(1, np.zeros(5, np.float32), 1.0)], {})
    ones = np.ones(5, np.float32)
    delta, _ = run(method(OPTIONS), [client_update(1, ones, 1.0)], memory)
    np.testing.assert_allclose(delta, ones, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_memory_counts_as_none(method: Any) -> None:
    memory: Memory = {"median_distance": "x", "median_weight": None, "centre": [1]}
    ones = np.ones(5, np.float32)
    np.testing.assert_allclose(
        run(method(OPTIONS), [client_update(1, ones, 1.0)], memory)[0], ones, rtol=1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_aggregate_of_nothing_is_an_error(method: Any) -> None:
    with pytest.raises(AggregationError, match="no update"):
        run(method(OPTIONS), [], {})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rest", "one", "size"), [(2.6e-23, 4e-23, 50_000), (0.0, 1e-40, 8193)])
def test_an_update_whose_norm_underflows_gains_nothing_in_the_first_round(
    method: Any, rest: float, one: float, size: int
) -> None:
    layout = Layout(("weight",), ((size,),))
    tiny = np.full(size, rest, np.float32)
    tiny[-1] = one
    deltas = [tiny, *np.random.default_rng(0).standard_normal((4, size), np.float32)]
    aggregator = method(OPTIONS)
    state = aggregator.init(layout, RoundContext(1))
    for client, delta in enumerate(deltas):
        state = aggregator.add(state, ClientUpdate(client, delta, 1.0, norm_of(delta)))
    mean, _ = aggregator.finish(state)
    # Four of five updates count, all of one length and with nothing in common.
    assert np.linalg.norm(mean) == pytest.approx(2 / 5 * math.sqrt(size), rel=0.05)
