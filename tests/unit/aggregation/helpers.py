"""What the tests of this package share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.contracts import AggregatorOptions, ClientUpdate, RoundContext
from fedge.params import Layout, Vector

LAYOUT = Layout(("layer.weight", "layer.bias"), ((2, 2), (1,)))
CONTEXT = RoundContext(round=3)
OPTIONS = AggregatorOptions()

values = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
vectors = hnp.arrays(np.float32, LAYOUT.size, elements=values)
weights = st.floats(0.5, 1e5)
cohorts = st.lists(st.tuples(vectors, weights), min_size=1, max_size=12).map(
    lambda pairs: [
        client_update(client, delta, weight) for client, (delta, weight) in enumerate(pairs)
    ]
)


def client_update(client: int, delta: Vector, num_examples: float, **more: float) -> ClientUpdate:
    """Return an admitted update with its true norm."""
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    return ClientUpdate(client, delta, num_examples, norm, **more)


def close(actual: Vector, expected: npt.NDArray[Any], scale: float) -> bool:
    """Tell whether two vectors agree to a few ulp of the largest value that was summed."""
    return bool(np.all(np.abs(actual - expected) <= 16 * np.finfo(np.float32).eps * scale + 1e-37))


def largest(updates: list[ClientUpdate]) -> float:
    return max(float(np.abs(update.delta).max()) for update in updates)
