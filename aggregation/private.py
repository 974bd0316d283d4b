"""A mean that is differentially private: bounded contributions and Gaussian noise."""

from __future__ import annotations

from aggregation.contracts import (
    STREAMING,
    AggregatorOptions,
    ClientUpdate,
    Memory,
    RoundContext,
)
from aggregation.mean import RunningSum
from fedge.params import Layout, Vector
from fedge.privacy.noise import Draws

_CHUNK = 1 << 20
"""Coordinates that are noised at once; the draws are float64 and take a few times as much."""


@STREAMING.register("private-mean")
class PrivateMean:
    """Noised sum of clipped updates, divided by the expected cohort.

    Each update is scaled down to the clipping norm and counts the same, whatever it says of its
    examples and however late it is: no client moves the sum by more than that norm. The divisor
    is public, because the number of answers would tell of one client.

    Source: McMahan et al. 2018, arXiv:1710.06963, with a fixed clipping norm.
    """

    def __init__(self, options: AggregatorOptions) -> None:
        self._clip_norm = options.clip_norm
        self._deviation = options.noise_multiplier * options.clip_norm
        self._expected_cohort = options.expected_cohort
        self._draws = options.draws or Draws.secure()

    def init(self, layout: Layout, context: RoundContext) -> RunningSum:  # noqa: ARG002
        """Return an empty sum."""
        return RunningSum(layout.size)

    def add(self, state: RunningSum, update: ClientUpdate) -> RunningSum:
        """Add one clipped update in place."""
        scale = min(1.0, self._clip_norm / update.norm) if update.norm > 0 else 1.0
        return state.add(update.delta, 1.0, scale=scale)

    def merge(self, left: RunningSum, right: RunningSum) -> RunningSum:
        """Add the right sum to the left one in place; neither holds noise yet."""
        return left.merge(right)

    def finish(self, state: RunningSum) -> tuple[Vector, Memory]:
        """Return the noised sum over the expected cohort; nothing is remembered."""
        delta = state.divided_by(self._expected_cohort)
        deviation = self._deviation / self._expected_cohort
        if deviation > 0:
            for start in range(0, delta.size, _CHUNK):
                part = delta[start : start + _CHUNK]
                part += deviation * self._draws.normal(part.size).numpy()
        return delta, {}
