"""Attacks made of all malicious clients' updates."""

import numpy as np
import pytest
from scipy.stats import norm

from simulation.attacks.colluding import largest_deviation
from tests.unit.simulation.attacks.scenes import HONEST, OTHER, forge, make_scene


def test_ipm_sends_a_share_of_the_mean_backwards() -> None:
    forged = forge("ipm", make_scene(), ipm_epsilon=0.25)
    np.testing.assert_allclose(forged.delta, -0.25 * (HONEST + OTHER) / 2, rtol=1e-6)
    assert forged.delta.dtype == np.float32


def test_alie_stays_z_standard_deviations_below_the_mean() -> None:
    forged = forge("alie", make_scene(num_asked=20))
    both = np.stack([HONEST, OTHER]).astype(np.float64)
    # 20 clients, 2 of them malicious: 9 supporters are needed among 18 honest ones, so z is 0;
    # with 5 malicious among 21 it is the quantile of 10/16.
    np.testing.assert_allclose(forged.delta, both.mean(axis=0), atol=1e-6)
    five = make_scene(others=(OTHER, OTHER, HONEST, HONEST), num_asked=21)
    colluding = five.colluding.astype(np.float64)
    expected = colluding.mean(axis=0) - norm.ppf(10 / 16) * colluding.std(axis=0)
    np.testing.assert_allclose(forge("alie", five).delta, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_clients", "num_malicious", "quantile"),
    # s = n // 2 + 1 - m supporters; the quantile is of (n - m - s) / (n - m).
    [(50, 24, 24 / 26), (50, 10, 24 / 40), (20, 4, 9 / 16), (100, 20, 49 / 80)],
)
def test_z_is_the_papers(num_clients: int, num_malicious: int, quantile: float) -> None:
    z = largest_deviation(num_clients, num_malicious)
    assert z == pytest.approx(norm.ppf(quantile), rel=1e-9)


@pytest.mark.parametrize(("num_clients", "num_malicious"), [(4, 3), (2, 2), (1, 1), (3, 1), (9, 0)])
def test_z_is_never_negative_and_0_where_there_is_nobody_to_win_over(
    num_clients: int, num_malicious: int
) -> None:
    assert largest_deviation(num_clients, num_malicious) == 0.0
