from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from aggregation.codecs.energy import distortion, energy, error_energy
from fedge.errors import UpdateRejected
from fedge.params import Vector
from tests.unit.aggregation.codecs.oracles import deltas, heavy_tailed


@given(deltas)
def test_energy_is_that_of_exact_sums(values: Vector) -> None:
    exact = sum(float(value) ** 2 for value in values)
    assert energy(values) == pytest.approx(exact, rel=1e-5, abs=1e-300)


def test_energy_of_many_chunks_is_their_sum() -> None:
    values = heavy_tailed(200_001)
    assert energy(values) == pytest.approx(float((values.astype(np.float64) ** 2).sum()), rel=1e-5)
    assert error_energy(values, values) == 0.0
    assert error_energy(values, np.zeros_like(values)) == energy(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_energy_of_what_is_not_finite(bad: float) -> None:
    with pytest.raises(UpdateRejected) as caught:
        energy(np.array([1, bad], np.float32))
    assert caught.value.reason == "not-finite"


def test_nothing_is_lost_of_nothing() -> None:
    assert distortion(0.0, 0.0) == 0.0
    assert distortion(1.0, 4.0) == 0.25
