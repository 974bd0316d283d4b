"""Attacks made of one client's own update."""

import numpy as np
import pytest

from simulation.attacks.methods import lone
from tests.unit.simulation.attacks.scenes import HONEST, NUM_EXAMPLES, forge, make_scene


def test_sign_flip_sends_the_update_backwards() -> None:
    forged = forge("sign-flip", make_scene())
    np.testing.assert_array_equal(forged.delta, [-3.0, 4.0, 0.0, -12.0])
    assert forged.num_examples == NUM_EXAMPLES


def test_scale_sends_it_backwards_and_twenty_times_as_long() -> None:
    forged = forge("scale", make_scene())
    np.testing.assert_array_equal(forged.delta, -20 * HONEST)
    assert forged.delta.dtype == np.float32
    np.testing.assert_array_equal(forge("scale", make_scene(), factor=2.0).delta, -2 * HONEST)


def test_gaussian_sends_noise_of_so_many_honest_norms() -> None:
    honest = np.linspace(-1, 1, 20_001, dtype=np.float32)
    forged = forge("gaussian", make_scene(honest, others=()), factor=7.0)
    norm = float(np.linalg.norm(honest))
    assert np.linalg.norm(forged.delta) == pytest.approx(7 * norm, rel=0.03)
    assert abs(float(forged.delta @ honest)) < 0.05 * 7 * norm * norm
    assert forged.delta.dtype == np.float32


def test_nan_sends_some_entries_that_are_no_numbers() -> None:
    honest = np.ones(250, np.float32)
    forged = forge("nan", make_scene(honest, others=()))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(forged.delta)), [0, 100, 200])
    assert np.isfinite(honest).all()


def test_examples_claims_a_billion_for_a_backward_update() -> None:
    forged = forge("examples", make_scene())
    np.testing.assert_array_equal(forged.delta, -HONEST)
    assert forged.num_examples == lone.CLAIMED_EXAMPLES == 1e9
