"""How many candidates go on after each virtual round, by name."""

from __future__ import annotations

from collections.abc import Callable

from fedge.naming import Registry

Pruner = Callable[[int, int], int]
"""Takes how many candidates there are and the number of the virtual round that is over, 1 or more;
returns how many go on, one at least. Candidates are scored only where some are dropped."""

PRUNERS: Registry[Pruner] = Registry("pruner")


@PRUNERS.register("halving")
def halving(count: int, number: int) -> int:
    """Keep the better half after rounds 2, 4, 8, ...: those that are left get twice the rounds.

    Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
    Optimization, AISTATS 2016 (successive halving, its eta 2).
    """
    is_due = number > 1 and number & (number - 1) == 0
    return max(1, (count + 1) // 2) if is_due else count


@PRUNERS.register("none")
def none(count: int, number: int) -> int:
    """Keep all."""
    del number
    return count
