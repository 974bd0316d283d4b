"""How many candidates go on after each virtual round, by name."""

from __future__ import annotations

from collections.abc import Callable

from fedge.naming import Registry

Pruner = Callable[[int, int, int], int]
"""Takes how many candidates there are, the number of the virtual round that is over, 1 or more, and
how many rounds there are; returns how many candidates go on, one at least. They are scored only
where some are dropped."""

PRUNERS: Registry[Pruner] = Registry("pruner")


@PRUNERS.register("halving")
def halving(count: int, number: int, num_rounds: int) -> int:
    """Keep the better half after a quarter and after half of the rounds, but not after the first.

    Counted from the end: a network begins on a plateau, where scores are mostly noise.

    Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter
    Optimization, AISTATS 2016 (successive halving, its eta 2).
    """
    is_due = number > 1 and number in (-(-num_rounds // 4), -(-num_rounds // 2))
    return max(1, (count + 1) // 2) if is_due else count


@PRUNERS.register("none")
def none(count: int, number: int, num_rounds: int) -> int:
    """Keep all."""
    del number, num_rounds
    return count
