from __future__ import annotations

import gc
import tracemalloc
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given
from hypothesis import strategies as st

from aggregation.contracts import ClientUpdate
from aggregation.mean import RunningSum, UniformMean, WeightedMean
from fedge.errors import AggregationError
from fedge.params import Layout, Vector
from tests.unit.aggregation.helpers import (
    CONTEXT,
    LAYOUT,
    OPTIONS,
    client_update,
    close,
    cohorts,
    largest,
    vectors,
    weights,
)

MEANS: list[WeightedMean | UniformMean] = [WeightedMean(OPTIONS), UniformMean(OPTIONS)]


def summed(method: WeightedMean | UniformMean, updates: list[ClientUpdate]) -> RunningSum:
    state = method.init(LAYOUT, CONTEXT)
    for update in updates:
        state = method.add(state, update)
    return state


def mean(method: WeightedMean | UniformMean, updates: list[ClientUpdate]) -> Vector:
    delta, memory = method.finish(summed(method, updates))
    assert memory == {}
    return delta


def oracle(updates: list[ClientUpdate], uniform: bool) -> npt.NDArray[np.float64]:
    deltas = np.stack([update.delta for update in updates]).astype(np.float64)
    return np.average(
        deltas, axis=0, weights=None if uniform else [update.num_examples for update in updates]
    )


@given(cohorts)
def test_means_equal_numpys_in_float64_to_a_few_ulp(updates: list[ClientUpdate]) -> None:
    for method, uniform in zip(MEANS, (False, True), strict=True):
        found = mean(method, updates)
        assert found.dtype == np.float32
        assert close(found, oracle(updates, uniform), largest(updates))


@given(cohorts, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(updates: list[ClientUpdate], random: Random) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    for method in MEANS:
        assert close(mean(method, shuffled), mean(method, updates), largest(updates))


def test_200_updates_in_any_order_differ_by_a_few_ulp_of_the_largest_term() -> None:
    rng = np.random.default_rng(0)
    layout = Layout(("weight",), ((20_000,),))
    updates = [
        client_update(client, rng.standard_normal(layout.size).astype(np.float32), 60.0)
        for client in range(200)
    ]
    method = WeightedMean(OPTIONS)
    means = []
    for _ in range(4):
        state = method.init(layout, CONTEXT)
        for index in rng.permutation(len(updates)):
            state = method.add(state, updates[index])
        means.append(method.finish(state)[0])
    spread = np.ptp(np.stack(means), axis=0)
    assert 0 < spread.max() <= 4 * np.finfo(np.float32).eps


@given(cohorts)
def test_the_same_order_gives_the_same_bits(updates: list[ClientUpdate]) -> None:
    for method in MEANS:
        assert mean(method, updates).tobytes() == mean(method, updates).tobytes()


@given(cohorts, cohorts, cohorts)
def test_merging_is_associative_and_equals_adding(
    first: list[ClientUpdate], second: list[ClientUpdate], third: list[ClientUpdate]
) -> None:
    everything = [*first, *second, *third]
    for method in MEANS:
        sums = [[summed(method, part) for part in (first, second, third)] for _ in range(2)]
        (a, b, c), (d, e, f) = sums
        left = method.merge(method.merge(a, b), c)
        right = method.merge(d, method.merge(e, f))
        assert left.num_updates == right.num_updates == len(everything)
        assert left.weight == pytest.approx(right.weight, rel=1e-12)
        scale = largest(everything)
        assert close(method.finish(left)[0], method.finish(right)[0], scale)
        assert close(method.finish(left)[0], mean(method, everything), scale)


@given(vectors, st.lists(weights, min_size=1, max_size=20))
def test_identical_updates_give_that_update(delta: Vector, some_weights: list[float]) -> None:
    updates = [client_update(client, delta, weight) for client, weight in enumerate(some_weights)]
    for method in MEANS:
        assert close(mean(method, updates), delta, largest(updates))


@given(cohorts)
def test_the_weighted_mean_equals_flowers(updates: list[ClientUpdate]) -> None:
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({"all": Array(update.delta)}),
                "metrics": MetricRecord({"num-examples": update.num_examples}),
            }
        )
        for update in updates
    ]
    flower = aggregate_arrayrecords(records, "num-examples")["all"].numpy()
    assert close(mean(WeightedMean(OPTIONS), updates), flower, largest(updates))


def test_a_client_that_claims_more_examples_gains_nothing_in_the_uniform_mean() -> None:
    updates = [
        client_update(0, np.zeros(5, np.float32), 1.0),
        client_update(1, np.ones(5, np.float32), 1e6),
    ]
    assert mean(UniformMean(OPTIONS), updates).tolist() == [0.5] * 5


def test_adding_and_finishing_leave_updates_and_state_alone() -> None:
    delta = np.ones(5, np.float32)
    state = summed(WeightedMean(OPTIONS), [client_update(0, delta, 4.0)])
    first = WeightedMean(OPTIONS).finish(state)[0]
    assert delta.tolist() == [1.0] * 5
    assert WeightedMean(OPTIONS).finish(state)[0].tobytes() == first.tobytes()


def test_a_read_only_update_is_summed_like_any_other() -> None:
    delta = np.arange(5, dtype=np.float32)
    locked = delta.copy()
    locked.flags.writeable = False
    update, locked_update = client_update(0, delta, 3.0), client_update(0, locked, 3.0)
    for method in MEANS:
        assert mean(method, [locked_update]).tobytes() == mean(method, [update]).tobytes()


def test_a_mean_of_nothing_is_an_error() -> None:
    for method in MEANS:
        with pytest.raises(AggregationError, match="no update"):
            method.finish(method.init(LAYOUT, CONTEXT))


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    layout = Layout(("weight",), ((100_000,),))
    method = WeightedMean(OPTIONS)
    update = client_update(0, np.ones(layout.size, np.float32), 1.0)
    state = method.add(method.init(layout, CONTEXT), update)
    gc.collect()
    tracemalloc.start()
    for _ in range(200):
        state = method.add(state, update)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < layout.size_bytes / 2
