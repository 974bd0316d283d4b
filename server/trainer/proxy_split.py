"""Which proxy examples a refinement never trains on, so that they can judge it."""

from __future__ import annotations

import numpy as np

from fedge.errors import RefineError
from fedge.rng import stream
from fedge.task import Examples


def split_proxy(proxy: Examples, seed: int, fraction: float) -> tuple[Examples, Examples]:
    """Return what is trained on and the held-out rest; one seed has one order for all rounds.

    Raises:
        RefineError: there are too few examples to hold any out.
    """
    num_held_out = int(len(proxy) * fraction)
    if fraction > 0 and num_held_out < 1:
        raise RefineError(
            f"{len(proxy)} proxy examples are too few to hold out {fraction:g} of them"
        )
    order = stream(seed, "search-split").permutation(len(proxy))
    held_out, trained_on = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    return proxy.subset(trained_on), proxy.subset(held_out)
