"""Updates in memory, and the same updates as Flower's strategies take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.contracts import BufferedAggregator, RoundContext
from fedge.flower_internals import set_task_identity
from fedge.params import Layout, Vector

Rows = npt.NDArray[np.float32]


class MemoryUpdates:
    """An `UpdateFile` over ``[N, size]`` deltas."""

    def __init__(self, deltas: npt.ArrayLike, discounts: Sequence[float] | None = None) -> None:
        self.deltas = np.asarray(deltas, np.float32)
        self.discounts = np.ones(len(self.deltas)) if discounts is None else np.asarray(discounts)

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Wildly different, so that a method that must not look at them shows if it does."""
        return np.geomspace(1, 1e6, len(self.deltas)) * self.discounts

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        norms: npt.NDArray[np.float64] = np.linalg.norm(self.deltas.astype(np.float64), axis=1)
        return norms

    def __len__(self) -> int:
        return len(self.deltas)

    def columns(self, start: int, stop: int, chosen: npt.NDArray[np.intp] | None = None) -> Rows:
        rows = self.deltas if chosen is None else self.deltas[chosen]
        return rows[:, start:stop].copy()


def layout_of(size: int) -> Layout:
    return Layout(("weight",), ((size,),))


def aggregate(
    method: BufferedAggregator,
    deltas: npt.ArrayLike,
    *,
    discounts: Sequence[float] | None = None,
    reference: Vector | None = None,
) -> Vector:
    """Return the method's delta for ``[N, size]`` deltas, having checked what every one owes."""
    updates = MemoryUpdates(deltas, discounts)
    before = updates.deltas.copy()
    layout = layout_of(updates.deltas.shape[1])
    delta, memory = method.finish(updates, layout, RoundContext(1, reference=reference))
    assert memory == {}
    assert delta.dtype == np.float32
    assert delta.shape == (layout.size,)
    np.testing.assert_array_equal(updates.deltas, before)
    return delta


def gaussian(num_updates: int, size: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).standard_normal((num_updates, size), np.float32)


def with_liars(honest: Rows, num_liars: int, scale: float = 1e6) -> Rows:
    """Return the honest rows with liars among them that all point one way, far out."""
    liars = np.full((num_liars, honest.shape[1]), scale, np.float32)
    places = np.random.default_rng(7).permutation(len(honest) + num_liars)
    return np.concatenate([honest, liars])[places]


def matrices(*, min_rows: int = 1, max_rows: int = 12) -> st.SearchStrategy[Rows]:
    """Return ``[N, 6]`` deltas of ordinary size."""
    elements = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
    rows = st.integers(min_rows, max_rows)
    return rows.flatmap(lambda count: hnp.arrays(np.float32, (count, 6), elements=elements))


def flwr_replies(deltas: npt.ArrayLike) -> list[Message]:
    """Return one training reply a row; all with the same number of examples."""
    set_task_identity(run_id=1, node_id=1)  # or Flower makes no message
    replies = []
    for node, row in enumerate(np.asarray(deltas, np.float32), start=1):
        content: dict[str, Any] = {
            "arrays": ArrayRecord({"weight": Array(row)}),
            "metrics": MetricRecord({"num-examples": 10}),
        }
        asked = Message(RecordDict({}), node, "train")
        replies.append(Message(RecordDict(content), reply_to=asked))
    return replies


def flwr_delta(strategy: Any, deltas: npt.ArrayLike) -> Vector:
    """Return what one of Flower's strategies makes of the deltas."""
    arrays, _ = strategy.aggregate_train(1, flwr_replies(deltas))
    delta: Vector = arrays["weight"].numpy()
    return delta
