"""What one device will do in one round of DP-SGD, fixed before a step is taken.

Sampling rate and steps follow from the public number of examples alone, so that ε says nothing
about the true one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedge.errors import PrivacyError, TaskError
from fedge.privacy.accounting import Spend, calibrate
from fedge.settings import Hyperparameters, PrivacyConfig


@dataclass(frozen=True)
class DpPlan:
    """One round of DP-SGD.

    Attributes:
        noise_multiplier: noise standard deviation in clipping norms.
        sampling_rate: probability of each example to be in a step's batch.
        clip_norm: per-example L2 clipping norm.
        delta: δ that the device accounts at.
        num_examples: public number of examples; batches are averaged over its expected share.
    """

    noise_multiplier: float
    sampling_rate: float
    num_steps: int
    clip_norm: float
    delta: float
    num_examples: float

    def __post_init__(self) -> None:
        """Refuse what cannot be accounted for, before anything is spent."""
        spend = self.spend
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            raise PrivacyError(f"clipping norm {self.clip_norm} must be > 0")
        if not 0 < self.delta < 1:
            raise PrivacyError(f"delta {self.delta} must be in (0, 1)")
        if not self.num_examples * spend.sampling_rate > 0:
            raise PrivacyError(f"public number of examples {self.num_examples} must be > 0")

    @property
    def spend(self) -> Spend:
        """What this round costs."""
        return Spend(self.noise_multiplier, self.sampling_rate, self.num_steps)

    @property
    def expected_batch(self) -> float:
        """Public number of examples that a step expects; gradients are divided by it."""
        return self.sampling_rate * self.num_examples


def public_count(config: PrivacyConfig, num_examples: int) -> float:
    """Return the number of examples that others may know: it plans, weights and divides.

    Declared if it is; the true number if counts are shared (or there is no DP); otherwise the
    largest power of two that does not exceed it, 0 for none.
    """
    if config.enabled and config.declared_examples:
        return float(config.declared_examples)
    if config.share_counts or not config.enabled or num_examples < 1:
        return float(num_examples)
    return float(1 << (num_examples.bit_length() - 1))


def plan_round(
    config: PrivacyConfig, hyper: Hyperparameters, num_examples: int, *, noise_multiplier: float
) -> DpPlan:
    """Return the plan of one round.

    Raises:
        TaskError: there are no examples.
        PrivacyError: the noise multiplier gives no privacy.
    """
    if num_examples < 1:
        raise TaskError("this device has no labelled examples to train on")
    count = public_count(config, num_examples)
    sampling_rate = min(1.0, hyper.batch_size / count)
    return DpPlan(
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        num_steps=max(1, round(hyper.local_epochs / sampling_rate)),
        clip_norm=hyper.clip_norm,
        delta=config.delta,
        num_examples=count,
    )


def choose_noise(
    config: PrivacyConfig,
    hyper: Hyperparameters,
    num_examples: int,
    *,
    num_rounds: int,
    spent: Sequence[Spend] = (),
) -> float:
    """Return the configured noise multiplier, or the least that fits the planned rounds.

    Args:
        config: the device's budget.
        hyper: how each planned round trains.
        num_examples: true number of examples; only its public form is used.
        num_rounds: rounds still planned, this one included.
        spent: what the device has spent already.

    Raises:
        BudgetExhausted: no noise makes the planned rounds fit.
    """
    if config.noise_multiplier > 0:
        return config.noise_multiplier
    draft = plan_round(config, hyper, num_examples, noise_multiplier=1.0)
    return calibrate(
        draft.sampling_rate, draft.num_steps, num_rounds, config.epsilon, config.delta, spent
    )
