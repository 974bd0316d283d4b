"""How many of a round's updates are taken to be hostile, and which methods can bear so many."""

from __future__ import annotations

import math

from aggregation.contracts import AggregatorOptions
from fedge.errors import AggregationError


def num_malicious(options: AggregatorOptions, num_updates: int) -> int:
    """Return f: the assumed fraction of the updates that came, rounded down.

    A round with fewer replies therefore assumes fewer liars. Below one over the fraction f is 0,
    and methods that only cut off or leave out f updates protect against nothing.
    """
    # 0.29 * 100 is 28.999999999999996.
    return math.floor(options.malicious_fraction * num_updates + 1e-9)


def check_enough(method: str, num_updates: int, f: int, *, per_malicious: int, more: int) -> None:
    """Refuse a round whose updates are too few for what the method promises about f of them.

    It is not retried with a smaller f: the operator said how many may be hostile, f already falls
    with the number of replies, and a round lost costs less than a poisoned one.

    Args:
        method: its registered name.
        num_updates: how many came.
        f: how many of them are taken to be hostile.
        per_malicious, more: the method needs ``per_malicious * f + more`` updates.

    Raises:
        AggregationError: there are fewer than the method needs.
    """
    needed = per_malicious * f + more
    if num_updates < needed:
        raise AggregationError(
            f"{method} needs {needed} updates to withstand {f} hostile ones and has {num_updates}; "
            "ask more clients a round, lower malicious_fraction or take another aggregator (median)"
        )
