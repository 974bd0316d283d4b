"""One round's aggregate, whatever the method: add updates, finish, close."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aggregation.contracts import (
    BufferedAggregator,
    ClientUpdate,
    Memory,
    RoundContext,
    StreamingAggregator,
)
from aggregation.methods import BUFFERED, STREAMING
from aggregation.spill import SpilledUpdates
from fedge.closing import Closing
from fedge.errors import AggregationError, ConfigError
from fedge.params import Layout, Vector


class RoundAggregate(Closing):
    """The updates of one round on their way to one delta.

    Args:
        name: a registered aggregator, streaming or buffered.
        context: what the method may know of the round.
        spill_dir: where a buffered method keeps the updates; unused by a streaming one.

    Raises:
        ConfigError: no aggregator has that name.
        AggregationError: there is no place for the updates.
    """

    def __init__(self, name: str, layout: Layout, context: RoundContext, spill_dir: Path) -> None:
        self._layout = layout
        self._context = context
        self._intake = _make_intake(name, layout, context, spill_dir)
        self._num_updates = 0

    @property
    def num_updates(self) -> int:
        """How many updates were added."""
        return self._num_updates

    def add(self, update: ClientUpdate) -> None:
        """Add one admitted update.

        Raises:
            AggregationError: it cannot be kept (disk full).
        """
        self._layout.check(update.delta)
        self._intake.add(update)
        self._num_updates += 1

    def finish(self) -> tuple[Vector, Memory]:
        """Return the aggregate delta and the memory for the next round.

        Raises:
            AggregationError: no update was added, or their aggregate is not finite.
        """
        where = f"round {self._context.round}"
        if self._num_updates == 0:
            raise AggregationError(f"{where}: no update was accepted; the model stays as it is")
        delta, memory = self._intake.finish()
        if not np.isfinite(delta).all():
            raise AggregationError(
                f"{where}: the aggregate of {self._num_updates} updates is not finite although "
                "each of them is; lower aggregation.max_norm or aggregation.max_examples"
            )
        return delta, memory

    def close(self) -> None:
        """Give back what the round held on disk; closing twice is fine."""
        self._intake.close()


def aggregator_names() -> list[str]:
    """Return the names that a `RoundAggregate` takes."""
    return sorted([*STREAMING, *BUFFERED])


class _Intake(Protocol):
    def add(self, update: ClientUpdate) -> None: ...

    def finish(self) -> tuple[Vector, Memory]: ...

    def close(self) -> None: ...


class _StreamingIntake:
    """Adds each update to a state and forgets it."""

    def __init__(
        self, method: StreamingAggregator[Any], layout: Layout, context: RoundContext
    ) -> None:
        self._method = method
        self._state = method.init(layout, context)

    def add(self, update: ClientUpdate) -> None:
        self._state = self._method.add(self._state, update)

    def finish(self) -> tuple[Vector, Memory]:
        return self._method.finish(self._state)

    def close(self) -> None:
        """Nothing is held outside memory."""


class _BufferedIntake:
    """Keeps each update on disk until all are there."""

    def __init__(
        self, method: BufferedAggregator, layout: Layout, context: RoundContext, spill_dir: Path
    ) -> None:
        self._method = method
        self._layout = layout
        self._context = context
        self._updates = SpilledUpdates(layout, spill_dir)

    def add(self, update: ClientUpdate) -> None:
        self._updates.append(update)

    def finish(self) -> tuple[Vector, Memory]:
        return self._method.finish(self._updates, self._layout, self._context)

    def close(self) -> None:
        self._updates.close()


def _make_intake(name: str, layout: Layout, context: RoundContext, spill_dir: Path) -> _Intake:
    if name in STREAMING:
        return _StreamingIntake(STREAMING[name](), layout, context)
    if name in BUFFERED:
        return _BufferedIntake(BUFFERED[name](), layout, context, spill_dir)
    known = ", ".join(aggregator_names())
    raise ConfigError(f"no aggregator is called {name!r}; there are: {known}")
