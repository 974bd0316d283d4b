from __future__ import annotations

import numpy as np
import pytest

from aggregation.bounded import BoundedMean
from aggregation.contracts import AggregatorOptions, ClientUpdate, Memory, RoundContext
from aggregation.course import COURSE, Course
from fedge.params import Layout, Vector
from tests.unit.aggregation.helpers import OPTIONS, client_update

LAYOUT = Layout(("weight",), ((20_000,),))
RNG = np.random.default_rng(0)
AHEAD = RNG.standard_normal(LAYOUT.size).astype(np.float32)


def near(direction: Vector, noise: float) -> Vector:
    drawn = RNG.standard_normal(LAYOUT.size).astype(np.float32)
    vector: Vector = direction + np.float32(noise) * drawn
    return vector


def course_of(vector: Vector) -> Course:
    return Course.of({COURSE: vector}, LAYOUT)


def norm(vector: Vector) -> float:
    return float(np.linalg.norm(vector))


@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
def test_an_inverted_update_opposes_the_course_and_an_honest_one_does_not(noise: float) -> None:
    course = course_of(AHEAD)
    honest = near(AHEAD, noise)
    assert not course.is_opposed_by(honest, norm(honest))
    assert course.is_opposed_by(-honest, norm(honest))


def test_an_update_of_pure_noise_is_not_counted_out() -> None:
    course = course_of(AHEAD)
    opposed = 0
    for _ in range(300):
        noise = near(np.zeros_like(AHEAD), 1.0)
        opposed += course.is_opposed_by(noise, norm(noise))
    assert opposed <= 4  # three sigmas: one of 740 by chance


@pytest.mark.parametrize("memory", [{}, {COURSE: None}, {COURSE: np.ones(3, np.float32)}])
def test_without_a_course_nothing_opposes_it(memory: Memory) -> None:
    course = Course.of(memory, LAYOUT)
    assert course.vector is None
    assert not course.is_opposed_by(-AHEAD, norm(AHEAD))


def test_a_zero_update_and_a_zero_course_oppose_nothing() -> None:
    zero = np.zeros_like(AHEAD)
    assert not course_of(AHEAD).is_opposed_by(zero, 0.0)
    assert not course_of(zero).is_opposed_by(AHEAD, norm(AHEAD))


def test_the_course_forgets_old_rounds_and_leaves_what_it_was_made_of_alone() -> None:
    first = np.ones(4, np.float32)
    course = Course(None).after(first)
    second = Course(course).after(np.array([0, 0, 0, 1], np.float32))
    np.testing.assert_allclose(second, [0.9, 0.9, 0.9, 1.9])
    assert first.tolist() == course.tolist() == [1.0] * 4


def rounds(hostile: int, factor: float = -1.0, *, allowed: float = 0.4) -> list[Vector]:
    """Run rounds of 10 clients of which some invert their update from the second round on."""
    method = BoundedMean(AggregatorOptions(malicious_fraction=allowed))
    memory, results = Memory(), []
    for round in range(3):
        state = method.init(LAYOUT, RoundContext(round, memory=memory))
        for client in range(10):
            delta = near(AHEAD, 2.0)
            if round and client < hostile:
                delta = np.float32(factor) * delta
            state = method.add(state, client_update(client, delta, 60.0))
        result, memory = method.finish(state)
        results.append(result)
    return results


@pytest.mark.parametrize("factor", [-1.0, -20.0])
def test_four_of_ten_that_invert_their_updates_do_not_slow_the_rounds_down(factor: float) -> None:
    clean, attacked = rounds(0)[-1], rounds(4, factor)[-1]
    along = float(attacked @ AHEAD) / float(clean @ AHEAD)
    assert along == pytest.approx(1.0, abs=0.1)


def test_where_more_oppose_the_course_than_may_be_hostile_all_count_and_a_new_one_begins() -> None:
    # Three of ten may be set aside where two are thought hostile, four may not.
    three, four = (rounds(hostile, allowed=0.2)[1] @ AHEAD for hostile in (3, 4))
    assert four < 0.5 * three
    _, turned, after = rounds(7)
    assert float(turned @ AHEAD) < 0
    assert float(after @ AHEAD) < 0


def test_a_course_that_hostile_clients_turned_does_not_shut_honest_ones_out_for_ever() -> None:
    """Four of ten honest clients oppose a course that leads nowhere any honest one goes."""
    method, other = BoundedMean(OPTIONS), near(np.zeros_like(AHEAD), 1.0)
    memory: Memory = {
        "median_distance": norm(AHEAD),
        "median_weight": 60.0,
        COURSE: AHEAD - 2 * other,
    }
    for round in range(3):
        state = method.init(LAYOUT, RoundContext(round, memory=memory))
        for client in range(10):
            delta = near(other if client < 4 else AHEAD, 0.5)
            state = method.add(state, client_update(client, delta, 60.0))
        result, memory = method.finish(state)
        assert float(result @ other) / norm(other) ** 2 > 0.2


def test_updates_set_aside_are_merged_too() -> None:
    method = BoundedMean(AggregatorOptions(malicious_fraction=0.3))
    memory = {"median_distance": norm(AHEAD), "median_weight": 1.0, COURSE: AHEAD}

    def partial(deltas: list[Vector]) -> object:
        state = method.init(LAYOUT, RoundContext(2, memory=memory))
        for client, delta in enumerate(deltas):
            state = method.add(state, ClientUpdate(client, delta, 1.0, norm(delta)))
        return state

    merged = method.merge(partial([AHEAD, -AHEAD]), partial([AHEAD]))  # type: ignore[arg-type]
    result, remembered = method.finish(merged)
    np.testing.assert_allclose(result, AHEAD, rtol=1e-5)
    np.testing.assert_allclose(remembered[COURSE], 1.9 * AHEAD, rtol=1e-5)
