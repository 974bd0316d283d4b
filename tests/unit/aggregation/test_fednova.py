from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.contracts import AggregatorOptions, ClientUpdate
from aggregation.fednova import FedNova, NormalizedSum
from aggregation.mean import WeightedMean
from fedge.errors import AggregationError
from fedge.params import Vector
from tests.unit.aggregation.helpers import (
    CONTEXT,
    LAYOUT,
    OPTIONS,
    client_update,
    close,
    largest,
    vectors,
    weights,
)

steps = st.integers(1, 500).map(float)
cohorts = st.lists(
    st.tuples(vectors, weights, steps, st.floats(0.1, 1.0)), min_size=1, max_size=8
).map(
    lambda rows: [
        client_update(client, delta, weight, num_steps=count, discount=discount)
        for client, (delta, weight, count, discount) in enumerate(rows)
    ]
)
METHOD = FedNova(OPTIONS)


def summed(updates: list[ClientUpdate], method: FedNova = METHOD) -> NormalizedSum:
    state = method.init(LAYOUT, CONTEXT)
    for update in updates:
        state = method.add(state, update)
    return state


def mean(updates: list[ClientUpdate], method: FedNova = METHOD) -> Vector:
    delta, memory = method.finish(summed(updates, method))
    assert memory == {}
    return delta


def oracle(updates: list[ClientUpdate]) -> npt.NDArray[np.float64]:
    """The formula as it stands in the paper, in double precision."""
    total = sum(update.num_examples * update.discount for update in updates)
    shares = [update.num_examples * update.discount / total for update in updates]
    tau = sum(p * update.num_steps for p, update in zip(shares, updates, strict=True))
    directions = [update.delta.astype(np.float64) / update.num_steps for update in updates]
    direction: Any = sum(p * d for p, d in zip(shares, directions, strict=True))
    return np.asarray(tau * direction)


def scale(updates: list[ClientUpdate]) -> float:
    """Return the largest value that a coordinate can come from."""
    taus = [update.num_steps for update in updates]
    return largest(updates) * max(taus) / min(taus)


@given(cohorts)
def test_it_is_the_papers_formula(updates: list[ClientUpdate]) -> None:
    found = mean(updates)
    assert found.dtype == np.float32
    assert close(found, oracle(updates), scale(updates))


@given(cohorts, steps)
def test_clients_that_take_equally_many_steps_get_the_weighted_mean(
    updates: list[ClientUpdate], count: float
) -> None:
    alike = [
        client_update(u.client, u.delta, u.num_examples, num_steps=count, discount=u.discount)
        for u in updates
    ]
    plain = WeightedMean(OPTIONS)
    state = plain.init(LAYOUT, CONTEXT)
    for update in alike:
        state = plain.add(state, update)
    assert close(mean(alike), plain.finish(state)[0], largest(alike))


@given(cohorts, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(updates: list[ClientUpdate], random: Random) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert close(mean(shuffled), mean(updates), scale(updates))


@given(cohorts, cohorts, cohorts)
def test_merging_is_associative_and_equals_adding(
    first: list[ClientUpdate], second: list[ClientUpdate], third: list[ClientUpdate]
) -> None:
    everything = [*first, *second, *third]
    a, b, c = (summed(part) for part in (first, second, third))
    left = METHOD.finish(METHOD.merge(METHOD.merge(a, b), c))[0]
    a, b, c = (summed(part) for part in (first, second, third))
    right = METHOD.finish(METHOD.merge(a, METHOD.merge(b, c)))[0]
    assert close(left, right, scale(everything))
    assert close(left, mean(everything), scale(everything))


@given(vectors, st.lists(st.tuples(weights, steps), min_size=1, max_size=8))
def test_the_same_step_by_all_gives_that_step_times_their_mean_number(
    step: Vector, clients: list[tuple[float, float]]
) -> None:
    updates = [
        client_update(client, step * np.float32(count), weight, num_steps=count)
        for client, (weight, count) in enumerate(clients)
    ]
    number = np.average([count for _, count in clients], weights=[weight for weight, _ in clients])
    assert close(mean(updates), step.astype(np.float64) * number, scale(updates))


@given(vectors, st.lists(weights, min_size=1, max_size=8), steps)
def test_identical_updates_give_that_update(
    delta: Vector, some_weights: list[float], count: float
) -> None:
    updates = [
        client_update(client, delta, weight, num_steps=count)
        for client, weight in enumerate(some_weights)
    ]
    assert close(mean(updates), delta, largest(updates))


def test_a_client_with_many_steps_does_not_pull_the_mean_to_its_own_optimum() -> None:
    updates = [
        client_update(0, np.full(5, 90.0, np.float32), 1.0, num_steps=90.0),
        client_update(1, np.full(5, -10.0, np.float32), 1.0, num_steps=10.0),
    ]
    assert mean(updates).tolist() == pytest.approx([0.0] * 5, abs=1e-5)


def test_with_momentum_steps_are_counted_by_what_they_move() -> None:
    momentum, moved = 0.9, []
    for count in (1, 20):
        speed = place = 0.0
        for _ in range(count):
            speed = momentum * speed + 1.0
            place += speed
        moved.append(place)
    updates = [
        client_update(0, np.full(5, moved[0], np.float32), 1.0, num_steps=1.0),
        client_update(1, np.full(5, -moved[1], np.float32), 1.0, num_steps=20.0),
    ]
    method = FedNova(AggregatorOptions(momentum=momentum))
    np.testing.assert_allclose(mean(updates, method), 0.0, atol=1e-4)
    assert mean(updates)[0] < -10


def test_a_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no update"):
        METHOD.finish(METHOD.init(LAYOUT, CONTEXT))
