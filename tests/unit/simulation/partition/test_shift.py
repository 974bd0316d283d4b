"""Feature shift: what clients see of IID examples."""

from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError
from fedge.task import Examples
from simulation.partition.pool import Pool
from tests.unit.simulation.partition.pools import divide

SIZE = 400


def image_pool() -> Pool:
    inputs = np.random.default_rng(0).normal(size=(SIZE, 3, 4)).astype(np.float32)
    return Pool("here", Examples(inputs, np.zeros(SIZE, np.int64)))


def seen(client: int, **options: Any) -> tuple[Examples, Examples]:
    """Return a client's examples as they are and as it sees them."""
    pool = image_pool()
    division = divide("feature-shift", pool, 4, **options)
    own = pool.examples.subset(division.parts.indices(client))
    return own, division.view(client, own)


@pytest.mark.parametrize("shift", ["affine", "rotation", "noise"])
def test_inputs_change_in_place_of_nothing_else(shift: str) -> None:
    own, shifted = seen(1, shift=shift)
    assert shifted.inputs.shape == own.inputs.shape
    assert shifted.inputs.dtype == np.float32
    assert not np.allclose(shifted.inputs, own.inputs)
    assert shifted.targets is own.targets
    np.testing.assert_array_equal(own.inputs, seen(1, shift=shift)[0].inputs)


@pytest.mark.parametrize("shift", ["affine", "rotation", "noise"])
def test_without_strength_nothing_is_shifted(shift: str) -> None:
    own, shifted = seen(1, shift=shift, shift_strength=0.0)
    np.testing.assert_allclose(shifted.inputs, own.inputs, rtol=1e-6)


def test_an_affine_shift_is_one_scale_and_offset_a_feature() -> None:
    own, shifted = seen(2, shift="affine")
    rows, changed = own.inputs.reshape(-1, 12), shifted.inputs.reshape(-1, 12)
    for feature in range(12):
        slope, offset = np.polyfit(rows[:, feature], changed[:, feature], 1)
        np.testing.assert_allclose(
            slope * rows[:, feature] + offset, changed[:, feature], atol=1e-4
        )
        assert slope > 0
    assert not np.allclose(
        seen(1, shift="affine")[1].inputs.mean(axis=0), changed.mean(axis=0).reshape(3, 4)
    )


def test_a_rotation_keeps_lengths() -> None:
    own, shifted = seen(2, shift="rotation")
    lengths = [np.linalg.norm(e.inputs.reshape(-1, 12), axis=1) for e in (own, shifted)]
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-5)


def test_later_clients_see_more_noise() -> None:
    for client in (0, 3):
        own, shifted = seen(client, shift="noise", shift_strength=2.0)
        variance = np.var(shifted.inputs - own.inputs)
        assert variance == pytest.approx(2.0 * (client + 1) / 4, rel=0.15)


def test_whole_numbers_cannot_be_shifted() -> None:
    pool = Pool("here", Examples(np.zeros((6, 2), np.int64), np.zeros(6)))
    with pytest.raises(ConfigError, match=r"^data.partitioner: .*here are int64"):
        divide("feature-shift", pool, 2)
