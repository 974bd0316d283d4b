import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import BudgetExhausted, PrivacyError, TaskError
from fedge.privacy.accounting import Spend, epsilon
from fedge.privacy.planning import DpPlan, choose_noise, plan_round, public_count
from fedge.settings import Hyperparameters, PrivacyConfig

HYPER = Hyperparameters(batch_size=64, local_epochs=3, clip_norm=0.7)
PLAN: dict[str, Any] = {
    "noise_multiplier": 1.0,
    "sampling_rate": 0.5,
    "num_steps": 4,
    "clip_norm": 1.0,
    "delta": 1e-5,
    "num_examples": 128.0,
}


@given(st.integers(1, 10**9))
def test_the_public_count_is_the_largest_power_of_two_not_above_the_true_one(number: int) -> None:
    count = public_count(PrivacyConfig(), number)
    assert math.log2(count).is_integer()
    assert count <= number < 2 * count


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PrivacyConfig(declared_examples=200), 200.0),
        (PrivacyConfig(declared_examples=200, share_counts=True), 200.0),
        (PrivacyConfig(share_counts=True), 333.0),
        (PrivacyConfig(enabled=False), 333.0),
        (PrivacyConfig(), 256.0),
    ],
)
def test_the_public_count_is_declared_shared_or_rounded(
    config: PrivacyConfig, expected: float
) -> None:
    assert public_count(config, 333) == expected


def test_no_examples_count_as_none() -> None:
    assert public_count(PrivacyConfig(), 0) == 0.0
    with pytest.raises(TaskError, match="no labelled examples"):
        plan_round(PrivacyConfig(), HYPER, 0, noise_multiplier=1.0)


@given(st.integers(256, 511))
def test_a_plan_says_nothing_of_the_true_count_but_its_bucket(number: int) -> None:
    plan = plan_round(PrivacyConfig(), HYPER, number, noise_multiplier=1.5)
    assert plan == DpPlan(1.5, 0.25, 12, 0.7, 1e-5, 256.0)
    assert plan.expected_batch == 64.0
    assert plan.spend == Spend(1.5, 0.25, 12)


@given(st.integers(1, 10**6), st.integers(1, 512), st.integers(1, 8))
def test_every_plan_covers_its_epochs_at_a_rate_of_at_most_one(
    number: int, batch_size: int, local_epochs: int
) -> None:
    hyper = Hyperparameters(batch_size=batch_size, local_epochs=local_epochs)
    plan = plan_round(PrivacyConfig(), hyper, number, noise_multiplier=1.0)
    assert 0 < plan.sampling_rate <= 1
    assert plan.num_steps * plan.sampling_rate == pytest.approx(local_epochs, abs=0.5)
    assert plan.expected_batch <= batch_size * (1 + 1e-9)


def test_the_least_noise_lets_all_planned_rounds_fit() -> None:
    config = PrivacyConfig(epsilon=4.0)
    noise = choose_noise(config, HYPER, 300, num_rounds=10)
    plan = plan_round(config, HYPER, 300, noise_multiplier=noise)
    assert 3.9 < epsilon([plan.spend] * 10, config.delta) <= 4.0
    assert noise == choose_noise(config, HYPER, 511, num_rounds=10)


def test_noise_chosen_again_after_each_round_still_fits() -> None:
    config = PrivacyConfig(epsilon=2.0)
    spent: list[Spend] = []
    for left in range(4, 0, -1):
        noise = choose_noise(config, HYPER, 300, num_rounds=left, spent=spent)
        spent.append(plan_round(config, HYPER, 300, noise_multiplier=noise).spend)
    assert 1.9 < epsilon(spent, config.delta) <= 2.0
    with pytest.raises(BudgetExhausted):
        choose_noise(PrivacyConfig(epsilon=1.5), HYPER, 300, num_rounds=1, spent=spent)


def test_configured_noise_is_taken_as_it_is() -> None:
    assert choose_noise(PrivacyConfig(noise_multiplier=3.0), HYPER, 300, num_rounds=10) == 3.0


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("noise_multiplier", 0.0, "gives no privacy"),
        ("sampling_rate", 1.5, "sampling rate 1.5"),
        ("num_steps", 0, "0 steps"),
        ("clip_norm", 0.0, "clipping norm 0.0"),
        ("clip_norm", math.nan, "clipping norm nan"),
        ("delta", 1.0, "delta 1.0"),
        ("num_examples", 0.0, "public number of examples 0.0"),
    ],
)
def test_a_plan_that_cannot_be_accounted_for_is_refused(
    field: str, value: float, text: str
) -> None:
    with pytest.raises(PrivacyError, match=text):
        DpPlan(**{**PLAN, field: value})
