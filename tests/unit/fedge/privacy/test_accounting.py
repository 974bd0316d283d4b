import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import BudgetExhausted, PrivacyError
from fedge.privacy.accounting import MIN_NOISE_MULTIPLIER, Spend, calibrate, epsilon

DELTA = 1e-5
VECTORS_FILE = Path("/work/shared/dp_vectors.json")

# (sampling rate, noise multiplier, steps, delta, ε by RDP, ε by PLD), from two independent
# libraries (Opacus 1.6, dp-accounting 0.6) and the exact analytic Gaussian.
VECTORS = [
    (0.04, 1.5, 2250, 1e-5, 7.329111, 6.769479),
    (0.004266666666666667, 1.1, 14062, 1e-5, 2.596556, 2.390530),
    (0.01, 4.0, 10000, 1e-5, 1.035490, 0.960045),
    (1.0, 1.0, 1, 1e-5, 4.728507, 4.377178),
    (1.0, 10.0, 100, 1e-5, 4.728507, 4.377178),
    (0.1, 1.0, 100, 1e-5, 7.899255, 7.046603),
    (0.02, 0.8, 1000, 1e-6, 8.131756, 7.336947),
    (0.001, 0.6, 10000, 1e-6, 3.999131, 3.155095),
]


def analytic_gaussian_delta(epsilon: float, mu: float) -> float:
    """Exact δ of one Gaussian mechanism (Balle and Wang 2018): an oracle without Rényi."""

    def cdf(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("rate", "sigma", "steps", "delta", "rdp", "pld"), VECTORS)
def test_epsilon_equals_the_reference_and_is_never_below_the_tight_bound(
    rate: float, sigma: float, steps: int, delta: float, rdp: float, pld: float
) -> None:
    found = epsilon([Spend(sigma, rate, steps)], delta)
    assert found == pytest.approx(rdp, abs=1e-4)
    assert found >= pld


@pytest.mark.skipif(not VECTORS_FILE.is_file(), reason=f"{VECTORS_FILE} is not on this machine")
def test_epsilon_equals_every_shared_reference_vector() -> None:
    for vector in json.loads(VECTORS_FILE.read_text())["vectors"]:
        found = epsilon([Spend(vector["sigma"], vector["q"], vector["steps"])], vector["delta"])
        assert found == pytest.approx(vector["rdp"], abs=1e-4), vector
        assert found >= vector["dpacc_pld"], vector


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
def test_epsilon_covers_the_exact_gaussian_mechanism(mu: float) -> None:
    found = epsilon([Spend(1 / mu, 1.0, 1)], DELTA)
    assert analytic_gaussian_delta(found, mu) <= DELTA


def test_nothing_spent_is_zero() -> None:
    assert epsilon([], DELTA) == 0.0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_a_history_in_parts_costs_what_it_costs_in_one(parts: list[int]) -> None:
    together = epsilon([Spend(1.0, 0.1, sum(parts))], DELTA)
    assert epsilon([Spend(1.0, 0.1, part) for part in parts], DELTA) == pytest.approx(together)


def test_rounds_add_up_and_are_not_forgotten() -> None:
    one_round = Spend(1.0, 0.032, 32)
    each = [epsilon([one_round] * rounds, DELTA) for rounds in range(1, 21)]
    assert each == sorted(each)
    # A fresh accountant a round would say each[0] for ever; PRV says 1.55 and 5.23.
    assert 1.55 < each[0] < 2.1
    assert each[-1] > 5.23
    assert each[-1] == pytest.approx(epsilon([Spend(1.0, 0.032, 640)], DELTA))


def test_different_spends_share_one_account() -> None:
    first, second = Spend(1.0, 0.1, 10), Spend(2.0, 0.5, 4)
    both = epsilon([first, second], DELTA)
    assert both == epsilon([second, first], DELTA)
    assert max(epsilon([first], DELTA), epsilon([second], DELTA)) < both
    assert both <= epsilon([first], DELTA) + epsilon([second], DELTA)


@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "num_steps", "text"),
    [
        (0.0, 0.1, 1, "noise multiplier 0.0 gives no privacy"),
        (-1.0, 0.1, 1, "gives no privacy"),
        (math.inf, 0.1, 1, "gives no privacy"),
        (math.nan, 0.1, 1, "gives no privacy"),
        (1.0, 0.0, 1, r"sampling rate 0.0 must be in \(0, 1\]"),
        (1.0, 1.01, 1, "sampling rate 1.01"),
        (1.0, 0.1, 0, "0 steps"),
    ],
)
def test_a_spend_without_meaning_is_refused(
    noise_multiplier: float, sampling_rate: float, num_steps: int, text: str
) -> None:
    with pytest.raises(PrivacyError, match=text):
        Spend(noise_multiplier, sampling_rate, num_steps)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_outside_zero_and_one_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon([Spend(1.0, 0.1, 1)], delta)


def test_hardly_any_noise_costs_much_and_never_fails_silently() -> None:
    assert epsilon([Spend(MIN_NOISE_MULTIPLIER, 0.5, 10)], DELTA) > 400
    with pytest.raises(PrivacyError, match="no ε can be computed for noise multiplier 1e-170"):
        epsilon([Spend(1e-170, 0.5, 10)], DELTA)


@pytest.mark.parametrize(("num_steps", "expected"), [(2250, 1.4160), (2000, 1.3562)])
def test_calibrate_inverts_epsilon(num_steps: int, expected: float) -> None:
    found = calibrate(0.04, num_steps, 1, 8.0, DELTA)
    assert found == pytest.approx(expected, abs=1e-3)


@settings(max_examples=6)
@given(
    rate=st.sampled_from([0.02, 0.5, 1.0]),
    num_steps=st.integers(1, 16),
    num_rounds=st.integers(1, 20),
    budget=st.sampled_from([0.5, 2.0, 8.0]),
)
def test_all_planned_rounds_fit_and_less_noise_would_not(
    rate: float, num_steps: int, num_rounds: int, budget: float
) -> None:
    noise = calibrate(rate, num_steps, num_rounds, budget, DELTA)
    assert epsilon([Spend(noise, rate, num_steps)] * num_rounds, DELTA) <= budget
    less = noise * 0.999
    if less > MIN_NOISE_MULTIPLIER:
        assert epsilon([Spend(less, rate, num_steps)] * num_rounds, DELTA) > budget


def test_what_is_spent_already_needs_more_noise_for_the_rest() -> None:
    spent = [Spend(2.0, 0.5, 8)] * 3
    fresh, rest = calibrate(0.5, 8, 5, 8.0, DELTA), calibrate(0.5, 8, 5, 8.0, DELTA, spent)
    assert rest > fresh
    assert epsilon([*spent, Spend(rest, 0.5, 40)], DELTA) <= 8.0


def test_a_generous_budget_still_gets_the_least_noise_there_is() -> None:
    assert calibrate(0.5, 1, 1, 1e6, DELTA) == MIN_NOISE_MULTIPLIER


def test_a_budget_that_is_gone_is_said_with_numbers() -> None:
    spent = [Spend(1.0, 1.0, 10)]
    with pytest.raises(BudgetExhausted) as caught:
        calibrate(1.0, 1, 1, 8.0, DELTA, spent)
    assert caught.value.budget == 8.0
    assert caught.value.spent == pytest.approx(epsilon(spent, DELTA))
    assert caught.value.needed > 8.0


def test_planning_no_rounds_is_refused() -> None:
    with pytest.raises(PrivacyError, match="0 rounds"):
        calibrate(0.5, 1, 0, 8.0, DELTA)
