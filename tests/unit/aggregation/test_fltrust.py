from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.fltrust import FLTrust
from fedge.errors import AggregationError
from fedge.params import Vector
from tests.unit.aggregation.helpers import OPTIONS
from tests.unit.aggregation.update_files import Rows, aggregate, gaussian

REFERENCE = gaussian(1, 40, seed=99)[0]


def fltrust(
    deltas: Rows, reference: Vector | None = REFERENCE, discounts: list[float] | None = None
) -> Vector:
    return aggregate(FLTrust(OPTIONS), deltas, reference=reference, discounts=discounts)


def near_reference(count: int, seed: int = 0) -> Rows:
    near: Rows = REFERENCE + gaussian(count, 40, seed) * np.float32(2)
    return near


def plain(deltas: Rows, reference: Vector) -> Vector:
    total, weight = np.zeros(deltas.shape[1]), 0.0
    root = reference.astype(np.float64)
    for delta in deltas.astype(np.float64):
        if not delta.any():
            continue
        cosine = delta @ root / np.linalg.norm(delta) / np.linalg.norm(root)
        trust = max(0.0, cosine)
        total += trust * np.linalg.norm(root) / np.linalg.norm(delta) * delta
        weight += trust
    return (total / weight).astype(np.float32)


def test_it_asks_for_the_clouds_own_update() -> None:
    assert FLTrust.needs_reference


@given(st.integers(1, 12), st.integers(0, 999))
def test_it_equals_a_plain_implementation(count: int, seed: int) -> None:
    deltas = near_reference(count, seed)
    if not np.any(deltas @ REFERENCE > 0.1):
        return
    np.testing.assert_allclose(fltrust(deltas), plain(deltas, REFERENCE), atol=1e-5)


def test_updates_that_are_the_reference_give_the_reference() -> None:
    np.testing.assert_allclose(fltrust(np.tile(REFERENCE, (5, 1))), REFERENCE, rtol=1e-5)


def test_who_sent_which_update_does_not_matter() -> None:
    deltas = near_reference(9)
    order = np.random.default_rng(3).permutation(9)
    np.testing.assert_allclose(fltrust(deltas[order]), fltrust(deltas), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 50.0, 1e6, 1e15])
def test_the_length_of_an_update_does_not_count(scale: float) -> None:
    deltas = near_reference(6)
    longer = deltas.copy()
    longer[2] *= np.float32(scale)
    np.testing.assert_allclose(fltrust(longer), fltrust(deltas), atol=1e-5)


@given(st.integers(1, 30), st.sampled_from([1.0, 1e6, 1e17]), st.integers(0, 999))
def test_no_majority_of_liars_makes_a_longer_step_than_the_cloud(
    num_liars: int, scale: float, seed: int
) -> None:
    liars = gaussian(num_liars, 40, seed) * np.float32(scale)
    found = fltrust(np.concatenate([near_reference(2), liars]))
    assert np.linalg.norm(found) <= np.linalg.norm(REFERENCE) * 1.0001
    assert found @ REFERENCE > 0


def test_updates_that_point_away_weigh_nothing() -> None:
    honest = near_reference(4)
    deltas = np.concatenate([honest, -20 * honest])
    np.testing.assert_allclose(fltrust(deltas), fltrust(honest), atol=1e-5)


def test_updates_of_no_length_to_speak_of_weigh_nothing() -> None:
    honest = near_reference(3)
    for length in (0.0, 1e-44, 1e-38, 1e-20):
        deltas = np.concatenate([honest, REFERENCE[None] * np.float32(length)])
        np.testing.assert_allclose(fltrust(deltas), fltrust(honest), atol=1e-5)


def test_staleness_multiplies_trust() -> None:
    deltas = np.tile(REFERENCE, (2, 1))
    deltas[0, :20], deltas[1, 20:] = 0, 0
    weights = np.linalg.norm(deltas, axis=1) * [1, 0.25]
    parts = deltas / np.linalg.norm(deltas, axis=1)[:, None] * np.linalg.norm(REFERENCE)
    expected = np.average(parts, axis=0, weights=weights)
    np.testing.assert_allclose(fltrust(deltas, discounts=[1, 0.25]), expected, atol=1e-5)


def test_a_round_without_a_reference_is_refused() -> None:
    with pytest.raises(AggregationError, match="no reference in round 1"):
        fltrust(near_reference(3), None)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_a_reference_that_says_nothing_is_refused(value: float) -> None:
    with pytest.raises(AggregationError, match="reference in round 1 has norm"):
        fltrust(near_reference(3), np.full(40, value, np.float32))


def test_a_round_in_which_nobody_is_trusted_is_refused() -> None:
    with pytest.raises(AggregationError, match="trusts none of 3 updates of round 1"):
        fltrust(np.tile(-REFERENCE, (3, 1)))


def test_no_updates_are_an_error() -> None:
    with pytest.raises(AggregationError, match="no update"):
        fltrust(np.zeros((0, 40), np.float32))
