"""How many candidates go on after each virtual round, by name."""

from __future__ import annotations

from collections.abc import Callable

from fedge.naming import Registry

Pruner = Callable[[int], int]
"""Returns how many of so many candidates go on to the next virtual round; one at least."""

PRUNERS: Registry[Pruner] = Registry("pruner")


@PRUNERS.register("halving")
def halving(count: int) -> int:
    """Keep the better half.

    Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
    Optimization, AISTATS 2016 (successive halving, its eta 2).
    """
    return max(1, (count + 1) // 2)


@PRUNERS.register("none")
def none(count: int) -> int:
    """Keep all."""
    return count
