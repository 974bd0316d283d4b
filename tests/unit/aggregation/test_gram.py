from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from aggregation import columns
from aggregation.gram import shortening, squared_distances
from tests.unit.aggregation.update_files import MemoryUpdates, Rows, gaussian, matrices


def plain(deltas: Rows) -> npt.NDArray[np.float64]:
    exact = deltas.astype(np.float64)
    return np.array([[np.sum((a - b) ** 2) for b in exact] for a in exact])


def distances(deltas: Rows) -> npt.NDArray[np.float64]:
    found = squared_distances(MemoryUpdates(deltas), deltas.shape[1])
    np.testing.assert_array_equal(found, found.T)
    assert not found.diagonal().any()
    assert np.all(found >= 0)
    return found


@given(matrices())
def test_they_are_the_squared_distances_of_all_pairs(deltas: Rows) -> None:
    deltas = np.clip(deltas, -100, 100) + np.float32(1)  # none 1000 times as long as another
    norms = np.linalg.norm(deltas.astype(np.float64), axis=1)
    if np.any(shortening(norms) < 1):
        return
    # A product is off by a few float32 ulp of the longest update after the centre is taken off.
    tolerance = 1e-6 * 4 * norms.max() ** 2
    np.testing.assert_allclose(distances(deltas), plain(deltas), rtol=1e-5, atol=tolerance)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = gaussian(7, 5000)
    monkeypatch.setattr(columns, "_CHUNK_BYTES", 7 * 4 * 64)
    np.testing.assert_allclose(distances(deltas), plain(deltas), rtol=1e-6)


def test_what_the_updates_have_in_common_costs_no_precision() -> None:
    deltas = gaussian(6, 2000)
    deltas = np.float32(4096) + np.round(deltas * 256) / np.float32(256)  # exact in float32
    np.testing.assert_allclose(distances(deltas), plain(deltas), rtol=1e-5)


def test_identical_updates_are_no_distance_apart() -> None:
    assert not distances(np.tile(gaussian(1, 500), (5, 1))).any()


def test_a_giant_neither_overflows_nor_blurs_the_distances_of_the_others() -> None:
    honest = gaussian(5, 400)
    giants = np.full((2, 400), 1e17, np.float32)
    found = distances(np.concatenate([giants, honest]))
    np.testing.assert_allclose(found[2:, 2:], plain(honest), rtol=4e-6)
    assert found[:2, 2:].min() > 1e5 * found[2:, 2:].max()


def test_only_updates_far_longer_than_the_median_are_shortened() -> None:
    factors = shortening(np.array([1.0, 0.0, 2.0, 900.0, 5e3]))
    np.testing.assert_allclose(factors, [1, 1, 1, 1, 0.4])


def test_when_most_updates_are_zero_the_others_keep_their_length_up_to_what_float32_bears() -> None:
    np.testing.assert_allclose(shortening(np.array([0.0, 0.0, 0.0, 7.0, 1e18])), [1, 1, 1, 1, 1e-3])
