import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation import private
from aggregation.contracts import AggregatorOptions, ClientUpdate
from aggregation.private import PrivateMean
from fedge.errors import AggregationError
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws
from tests.unit.aggregation.helpers import (
    CONTEXT,
    LAYOUT,
    client_update,
    close,
    cohorts,
    vectors,
    weights,
)

CLIP = 2.5
NOISELESS = AggregatorOptions(clip_norm=CLIP, noise_multiplier=0.0, expected_cohort=1)
WIDE = Layout(("w",), ((200_000,),))
clips = st.floats(1e-2, 1e4)


def run(options: AggregatorOptions, updates: list[ClientUpdate], layout: Layout = LAYOUT) -> Vector:
    method = PrivateMean(options)
    state = method.init(layout, CONTEXT)
    for update in updates:
        state = method.add(state, update)
    delta, memory = method.finish(state)
    assert memory == {}
    return delta


def clipped(delta: Vector, clip: float) -> npt.NDArray[np.float64]:
    wide = delta.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    scale = min(1.0, clip / norm) if norm else 1.0
    return np.asarray(scale * wide)


def moved(left: Vector, right: Vector) -> float:
    return float(np.linalg.norm(left.astype(np.float64) - right))


def rounding(updates: list[ClientUpdate], clip: float) -> float:
    """Return more than float32 can be off by when so many vectors of this norm are summed."""
    return 1e-5 * clip * (len(updates) + 1)


@given(cohorts, st.floats(0.1, 1.0), st.integers(1, 500))
def test_without_noise_it_is_the_uniform_sum_of_clipped_updates(
    updates: list[ClientUpdate], discount: float, expected: int
) -> None:
    late = [
        ClientUpdate(u.client, u.delta, u.num_examples, u.norm, u.num_steps, discount)
        for u in updates
    ]
    options = AggregatorOptions(clip_norm=CLIP, expected_cohort=expected)
    oracle = sum(clipped(update.delta, CLIP) for update in updates) / expected
    assert close(run(options, late), np.asarray(oracle), CLIP * len(updates) / expected)


@given(cohorts, vectors, vectors, weights, clips)
def test_one_client_moves_the_sum_by_its_clipping_norm_at_most(
    others: list[ClientUpdate], first: Vector, second: Vector, weight: float, clip: float
) -> None:
    options = AggregatorOptions(clip_norm=clip, expected_cohort=1)
    without = run(options, others)
    one, other = (
        run(options, [*others, client_update(99, delta, weight)]) for delta in (first, second)
    )
    slack = rounding(others, clip)
    assert moved(one, without) <= clip + slack
    assert moved(one, other) <= 2 * clip + slack


def test_the_bound_is_reached() -> None:
    one = client_update(1, np.array([1e9, 0, 0, 0, 0], np.float32), 1e6)
    other = client_update(1, np.array([-1e9, 0, 0, 0, 0], np.float32), 1.0)
    assert moved(run(NOISELESS, [one]), run(NOISELESS, [other])) == pytest.approx(2 * CLIP)


@pytest.mark.parametrize("num_updates", [1, 7])
def test_the_divisor_is_the_expected_cohort_and_not_the_number_of_answers(
    num_updates: int,
) -> None:
    ones = np.ones(5, np.float32)
    options = AggregatorOptions(clip_norm=10.0, expected_cohort=4)
    delta = run(options, [client_update(i, ones, 3.0) for i in range(num_updates)])
    np.testing.assert_allclose(delta, ones * num_updates / 4, rtol=1e-6)


def test_the_noise_has_the_deviation_that_is_accounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_CHUNK", 30_000)
    options = AggregatorOptions(
        clip_norm=CLIP, noise_multiplier=1.5, expected_cohort=10, draws=Draws.seeded(4)
    )
    zero = client_update(1, np.zeros(WIDE.size, np.float32), 1.0)
    noise = run(options, [zero, zero], WIDE).astype(np.float64) * 10
    deviation = 1.5 * CLIP
    # Five standard errors of the mean, of the variance and of the correlation of chunks.
    bound = 5 / math.sqrt(WIDE.size)
    assert abs(noise.mean()) <= deviation * bound
    assert abs(noise.var() / deviation**2 - 1) <= math.sqrt(2) * bound
    chunks = noise[:180_000].reshape(6, 30_000)
    off_diagonal = np.corrcoef(chunks) - np.eye(6)
    assert np.abs(off_diagonal).max() <= 5 / math.sqrt(30_000)
    # Kolmogorov's distance from the normal distribution, at a level of one in a million.
    ordered = np.sort(noise / deviation)
    normal = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in ordered[::20]])
    ranks = (np.arange(0, WIDE.size, 20) + 0.5) / WIDE.size
    assert np.abs(normal - ranks).max() <= math.sqrt(math.log(2e6) / (2 * WIDE.size))


def test_partial_sums_are_noised_once() -> None:
    zero = client_update(1, np.zeros(WIDE.size, np.float32), 1.0)
    options = AggregatorOptions(noise_multiplier=1.0, draws=Draws.seeded(5))
    method = PrivateMean(options)
    states = [method.add(method.init(WIDE, CONTEXT), zero) for _ in range(8)]
    merged = states[0]
    for state in states[1:]:
        merged = method.merge(merged, state)
    delta, _ = method.finish(merged)
    assert delta.std() == pytest.approx(1.0, rel=0.01)


@given(cohorts, cohorts)
def test_partial_sums_merge(first: list[ClientUpdate], second: list[ClientUpdate]) -> None:
    method: Any = PrivateMean(NOISELESS)
    states = []
    for part in (first, second):
        state = method.init(LAYOUT, CONTEXT)
        for update in part:
            state = method.add(state, update)
        states.append(state)
    merged, _ = method.finish(method.merge(*states))
    whole = run(NOISELESS, [*first, *second])
    assert close(merged, whole, CLIP * len([*first, *second]))


def test_unless_told_otherwise_nobody_can_repeat_the_noise() -> None:
    zero = client_update(1, np.zeros(5, np.float32), 1.0)
    options = AggregatorOptions(noise_multiplier=1.0)
    assert not np.array_equal(run(options, [zero]), run(options, [zero]))


def test_no_update_is_no_aggregate() -> None:
    with pytest.raises(AggregationError, match="no update"):
        run(NOISELESS, [])
