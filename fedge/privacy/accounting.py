"""How much ε a device has spent, all rounds together, and how much noise a budget needs.

Rényi accounting of the Poisson-sampled Gaussian mechanism by Opacus, which is imported on the
first call: a process that never trains does not pay for it. Adjacency is adding or removing one
example. There is one account a device and it holds every spend since the first: a fresh
accountant a round would report the ε of one round for ever.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import BudgetExhausted, PrivacyError

MIN_NOISE_MULTIPLIER = 0.1
MAX_NOISE_MULTIPLIER = 1e4
_NOISE_PRECISION = 1e-4
_LARGEST_LOG = 50.0

# Opacus' own orders and larger ones, which a budget below about 0.3 needs.
_ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 512, 1024),
)


@dataclass(frozen=True)
class Spend:
    """One run of DP-SGD as the accountant sees it.

    Attributes:
        noise_multiplier: noise standard deviation in clipping norms.
        sampling_rate: probability of each example to be in a step's batch.
    """

    noise_multiplier: float
    sampling_rate: float
    num_steps: int

    def __post_init__(self) -> None:
        """Refuse what has no finite ε or no meaning."""
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PrivacyError(
                f"noise multiplier {self.noise_multiplier} gives no privacy: it must be > 0"
            )
        if not 0 < self.sampling_rate <= 1:
            raise PrivacyError(f"sampling rate {self.sampling_rate} must be in (0, 1]")
        if self.num_steps < 1:
            raise PrivacyError(f"a spend of {self.num_steps} steps must be at least 1 step")


def epsilon(spends: Sequence[Spend], delta: float) -> float:
    """Return ε of all spends together at this δ; 0.0 for none.

    Raises:
        PrivacyError: δ is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta {delta} must be in (0, 1)")
    return _composed(tuple(spends), delta) if spends else 0.0


def calibrate(
    sampling_rate: float,
    num_steps: int,
    num_rounds: int,
    epsilon: float,
    delta: float,
    spent: Sequence[Spend] = (),
) -> float:
    """Return the least noise multiplier with which all planned rounds fit the budget.

    Args:
        sampling_rate: of each planned step.
        num_steps: steps of one round.
        num_rounds: rounds still planned.
        epsilon: budget of what is spent and planned together.
        delta: δ of the budget.
        spent: what the device has spent already.

    Returns:
        Noise multiplier, at most 0.01 % above the least one and never below it; at least 0.1.

    Raises:
        BudgetExhausted: no noise is enough.
    """
    if num_rounds < 1:
        raise PrivacyError(f"cannot plan {num_rounds} rounds: at least 1")
    return _calibrated(sampling_rate, num_steps, num_rounds, epsilon, delta, tuple(spent))


@lru_cache(maxsize=1024)
def _calibrated(
    sampling_rate: float,
    num_steps: int,
    num_rounds: int,
    epsilon: float,
    delta: float,
    spent: tuple[Spend, ...],
) -> float:
    def planned(noise_multiplier: float) -> float:
        plan = Spend(noise_multiplier, sampling_rate, num_steps * num_rounds)
        return _epsilon_of([*spent, plan], delta)

    low, high = MIN_NOISE_MULTIPLIER, 1.0
    while planned(high) > epsilon:
        low, high = high, high * 2
        if low > MAX_NOISE_MULTIPLIER:
            raise BudgetExhausted(
                spent=_epsilon_of(spent, delta), needed=planned(low), budget=epsilon
            )
    if high == 1.0 and planned(low) <= epsilon:
        return low
    return _least(planned, epsilon, low, high)


def _least(planned: Callable[[float], float], budget: float, low: float, high: float) -> float:
    """Return the noise multiplier where a decreasing ε crosses the budget, from above.

    An evaluation takes a fifth of a second, and this is nearly a straight line in logarithms.
    """
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        return min(_LARGEST_LOG, math.log(planned(math.exp(log_noise)) / budget))

    log_noise = brentq(excess, math.log(low), math.log(high), xtol=_NOISE_PRECISION / 4)
    noise_multiplier = math.exp(log_noise)
    while planned(noise_multiplier) > budget:
        noise_multiplier *= 1 + _NOISE_PRECISION / 4
    return noise_multiplier


@lru_cache(maxsize=4096)
def _composed(spends: tuple[Spend, ...], delta: float) -> float:
    """Return ε of these spends; clients of a simulation that trained alike share the answer."""
    total = np.zeros(len(_ORDERS))
    for spend in spends:
        total += spend.num_steps * _step_rdp(spend.noise_multiplier, spend.sampling_rate)
    return _to_epsilon(total, delta)


# `calibrate` has an argument of that name.
_epsilon_of = epsilon


@lru_cache(maxsize=4096)
def _step_rdp(noise_multiplier: float, sampling_rate: float) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of one step at every order."""
    from opacus.accountants.analysis import rdp

    orders: list[Any] = list(_ORDERS)
    try:
        values = rdp.compute_rdp(
            q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders
        )
    except (OverflowError, ValueError, ZeroDivisionError) as error:
        raise PrivacyError(
            f"no ε can be computed for noise multiplier {noise_multiplier} and sampling rate "
            f"{sampling_rate}: {error}"
        ) from error
    # An order that is lost to rounding (nan) says nothing; it must not become a bound.
    return np.nan_to_num(np.asarray(values, np.float64), nan=np.inf, posinf=np.inf)


def _to_epsilon(total: npt.NDArray[np.float64], delta: float) -> float:
    from opacus.accountants.analysis import rdp

    with warnings.catch_warnings():
        # "Optimal order is the smallest alpha": the bound holds, a tighter one may exist.
        warnings.simplefilter("ignore")
        value, _ = rdp.get_privacy_spent(orders=list(_ORDERS), rdp=total, delta=delta)
    return max(0.0, float(value))
