from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.contracts import AggregatorOptions, ClientUpdate, RoundContext
from aggregation.local_steps import next_control
from aggregation.mean import UniformMean
from aggregation.scaffold import ControlledSum, Scaffold
from fedge.errors import AggregationError
from fedge.params import Vector
from fedge.privacy.noise import Draws
from fedge.settings import Hyperparameters
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from tests.quadratic_task import QuadraticTask, clients, gradient, optimum
from tests.unit.aggregation.helpers import CONTEXT, LAYOUT, client_update, close, largest, vectors

RATE, POPULATION = 0.25, 12
METHOD = Scaffold(AggregatorOptions(learning_rate=RATE, num_clients=POPULATION))
cohorts = st.lists(st.tuples(vectors, st.integers(1, 50)), min_size=1, max_size=8).map(
    lambda rows: [
        client_update(client, delta, 1.0, num_steps=float(steps))
        for client, (delta, steps) in enumerate(rows)
    ]
)


def summed(updates: list[ClientUpdate], control: Vector | None = None) -> ControlledSum:
    memory = {} if control is None else {"control": control}
    state = METHOD.init(LAYOUT, replace(CONTEXT, memory=memory))
    for update in updates:
        state = METHOD.add(state, update)
    return state


def scale(updates: list[ClientUpdate], control: Vector) -> float:
    return largest(updates) / RATE + float(np.abs(control).max())


def oracle(updates: list[ClientUpdate], control: Vector) -> npt.NDArray[np.float64]:
    """c + |S|/N · mean of the clients' changes, in double precision."""
    before = control.astype(np.float64)
    changes = [-before - u.delta.astype(np.float64) / (u.num_steps * RATE) for u in updates]
    return np.asarray(before + len(updates) / POPULATION * np.mean(changes, axis=0))


@given(cohorts, vectors)
def test_delta_and_control_are_the_papers(updates: list[ClientUpdate], control: Vector) -> None:
    kept = control.copy()
    delta, memory = METHOD.finish(summed(updates, control))
    expected = np.mean([update.delta.astype(np.float64) for update in updates], axis=0)
    assert close(delta, expected, largest(updates))
    assert close(memory["control"], oracle(updates, control), scale(updates, control))
    assert delta.dtype == memory["control"].dtype == np.float32
    np.testing.assert_array_equal(control, kept)


@given(cohorts, vectors)
def test_the_server_and_its_clients_agree_about_the_controls(
    updates: list[ClientUpdate], control: Vector
) -> None:
    owns = [np.full(LAYOUT.size, client, np.float32) for client in range(len(updates))]
    changes = [
        next_control(own, control, u.delta, num_steps=u.num_steps, learning_rate=RATE) - own
        for own, u in zip(owns, updates, strict=True)
    ]
    _, memory = METHOD.finish(summed(updates, control))
    expected = control + np.sum(changes, axis=0, dtype=np.float64) / POPULATION
    assert close(memory["control"], expected, scale(updates, control) + len(updates))


@given(cohorts, vectors, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(
    updates: list[ClientUpdate], control: Vector, random: Random
) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)
    delta, memory = METHOD.finish(summed(updates, control))
    other, other_memory = METHOD.finish(summed(shuffled, control))
    assert close(other, delta, largest(updates))
    assert close(other_memory["control"], memory["control"], scale(updates, control))


@given(cohorts, cohorts, cohorts, vectors)
def test_merging_is_associative_and_equals_adding(
    first: list[ClientUpdate],
    second: list[ClientUpdate],
    third: list[ClientUpdate],
    control: Vector,
) -> None:
    def parts() -> list[ControlledSum]:
        return [summed(part, control) for part in (first, second, third)]

    everything = [*first, *second, *third]
    a, b, c = parts()
    left, left_memory = METHOD.finish(METHOD.merge(METHOD.merge(a, b), c))
    a, b, c = parts()
    right, right_memory = METHOD.finish(METHOD.merge(a, METHOD.merge(b, c)))
    whole, memory = METHOD.finish(summed(everything, control))
    assert close(left, right, largest(everything))
    assert close(left, whole, largest(everything))
    for other in (left_memory, right_memory):
        assert close(other["control"], memory["control"], scale(everything, control))


@given(vectors, st.integers(1, 8))
def test_identical_updates_give_that_update(delta: Vector, number: int) -> None:
    updates = [client_update(client, delta, 1.0) for client in range(number)]
    assert close(METHOD.finish(summed(updates))[0], delta, largest(updates))


def test_a_claim_of_more_examples_changes_nothing() -> None:
    def finish(num_examples: float) -> tuple[Vector, Vector]:
        updates = [
            client_update(0, np.ones(5, np.float32), 1.0),
            client_update(1, np.zeros(5, np.float32), num_examples),
        ]
        delta, memory = METHOD.finish(summed(updates))
        return delta, memory["control"]

    for honest, lie in zip(finish(1.0), finish(1e9), strict=True):
        np.testing.assert_array_equal(honest, lie)


def test_a_population_that_is_not_told_is_those_who_answer() -> None:
    method = Scaffold(AggregatorOptions(learning_rate=0.5))
    state = method.init(LAYOUT, RoundContext(1, memory={"control": np.full(5, 9.0, np.float32)}))
    for client, value in enumerate((2.0, 4.0)):
        update = client_update(client, np.full(5, value, np.float32), 1.0, num_steps=2.0)
        state = method.add(state, update)
    assert method.finish(state)[1]["control"].tolist() == [-3.0] * 5


def test_a_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no update"):
        METHOD.finish(METHOD.init(LAYOUT, CONTEXT))


def test_a_control_that_overflows_is_an_error() -> None:
    method = Scaffold(AggregatorOptions(learning_rate=1e-9))
    update = client_update(0, np.full(5, 1e32, np.float32), 1.0)
    state = method.add(method.init(LAYOUT, CONTEXT), update)
    with np.errstate(over="ignore"), pytest.raises(AggregationError, match="control"):
        method.finish(state)


def run_rounds(
    data: list[Examples],
    hyper: Hyperparameters,
    *,
    num_rounds: int,
    cohort_size: int,
) -> npt.NDArray[np.float64]:
    """Train the model with the real client and server halves; returns the last weights."""
    trainer = LocalTrainer(QuadraticTask())
    scaffold = hyper.client_term == "scaffold"
    options = AggregatorOptions(
        learning_rate=hyper.learning_rate, momentum=hyper.momentum, num_clients=len(data)
    )
    method: Any = Scaffold(options) if scaffold else UniformMean(options)
    weights = np.zeros(trainer.layout.size, np.float32)
    memory: dict[str, Any] = {}
    owns: dict[int, Vector] = {}
    for round in range(1, num_rounds + 1):
        control = memory.get("control")
        state = method.init(trainer.layout, RoundContext(round, memory=memory))
        for turn in range(cohort_size):
            client = (round * cohort_size + turn) % len(data)
            correction = None if control is None else control - owns.get(client, np.float32(0))
            result = trainer.train(
                weights, data[client], hyper, draws=Draws.seeded(round), correction=correction
            )
            if scaffold:
                owns[client] = next_control(
                    owns.get(client),
                    control,
                    result.delta,
                    num_steps=result.num_steps,
                    learning_rate=hyper.learning_rate,
                    momentum=hyper.momentum,
                )
            update = client_update(client, result.delta, 1.0, num_steps=float(result.num_steps))
            state = method.add(state, update)
        delta, memory = method.finish(state)
        weights = weights + delta
    return weights.astype(np.float64)


@pytest.mark.parametrize(
    ("momentum", "cohort_size", "num_rounds"), [(0.0, 4, 30), (0.0, 2, 60), (0.8, 4, 40)]
)
def test_scaffold_reaches_the_optimum_that_fedavg_drifts_away_from(
    momentum: float, cohort_size: int, num_rounds: int
) -> None:
    data = clients(4)
    hyper = Hyperparameters(
        learning_rate=0.1 * (1 - momentum), momentum=momentum, local_epochs=10, batch_size=4
    )
    best = optimum(data)
    assert np.linalg.norm(np.mean([gradient(best, part) for part in data], axis=0)) < 1e-9
    sizes = {"num_rounds": num_rounds, "cohort_size": cohort_size}
    drifted = run_rounds(data, hyper, **sizes)
    corrected = run_rounds(data, replace(hyper, client_term="scaffold"), **sizes)
    assert np.linalg.norm(drifted - best) > 0.2
    assert np.linalg.norm(corrected - best) < 1e-4
