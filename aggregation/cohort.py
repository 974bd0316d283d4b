"""One round's aggregate, whatever the method: add updates, finish, close."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aggregation.contracts import (
    AggregatorOptions,
    BufferedAggregator,
    ClientUpdate,
    Memory,
    RoundContext,
    StreamingAggregator,
)
from aggregation.methods import BUFFERED, STREAMING
from aggregation.partial import PartialAggregate
from aggregation.spill import SpilledUpdates
from fedge.closing import Closing
from fedge.errors import AggregationError, ConfigError
from fedge.params import Layout, Vector


class RoundAggregate(Closing):
    """The updates of one round on their way to one delta.

    Args:
        name: a registered aggregator, streaming or buffered.
        options: what it is configured with.
        context: what the method may know of the round.
        spill_dir: where a buffered method keeps the updates; unused by a streaming one.

    Raises:
        ConfigError: no aggregator has that name.
        AggregationError: there is no place for the updates.
    """

    def __init__(
        self,
        name: str,
        options: AggregatorOptions,
        layout: Layout,
        context: RoundContext,
        spill_dir: Path,
    ) -> None:
        self._layout = layout
        self._context = context
        self._intake = _make_intake(name, options, layout, context, spill_dir)
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

    def merge(self, partial: PartialAggregate) -> None:
        """Add what a `ShardAggregate` of the same method, options and round added up.

        Raises:
            AggregationError: it cannot be kept (disk full).
        """
        if partial.num_updates:
            self._intake.merge(partial)
            self._num_updates += partial.num_updates

    def finish(self, reference: Vector | None = None) -> tuple[Vector, Memory]:
        """Return the aggregate delta and the memory for the next round.

        Args:
            reference: the cloud's own update from the same parent, for a method that needs it.

        Raises:
            AggregationError: no update was added, what the method needs is missing, or the
                aggregate is not finite.
        """
        where = f"round {self._context.round}"
        if self._num_updates == 0:
            raise AggregationError(f"{where}: no update was accepted; the model stays as it is")
        delta, memory = self._intake.finish(reference)
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


def needs_reference(name: str) -> bool:
    """Tell whether an aggregator needs the cloud's own update (FLTrust)."""
    return name in BUFFERED and BUFFERED[name](AggregatorOptions()).needs_reference


def needs_steps(name: str) -> bool:
    """Tell whether an aggregator divides by the local steps that a client reports."""
    return name in STREAMING and getattr(STREAMING[name], "needs_steps", False)


class _Intake(Protocol):
    def add(self, update: ClientUpdate) -> None: ...

    def merge(self, partial: PartialAggregate) -> None: ...

    def finish(self, reference: Vector | None) -> tuple[Vector, Memory]: ...

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

    def merge(self, partial: PartialAggregate) -> None:
        self._state = self._method.merge(self._state, partial.state)

    def finish(self, reference: Vector | None) -> tuple[Vector, Memory]:  # noqa: ARG002
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

    def merge(self, partial: PartialAggregate) -> None:
        for update in partial.updates:
            self._updates.append(update)

    def finish(self, reference: Vector | None) -> tuple[Vector, Memory]:
        context = replace(self._context, reference=reference)
        return self._method.finish(self._updates, self._layout, context)

    def close(self) -> None:
        self._updates.close()


def _make_intake(
    name: str,
    options: AggregatorOptions,
    layout: Layout,
    context: RoundContext,
    spill_dir: Path,
) -> _Intake:
    if name in STREAMING:
        return _StreamingIntake(STREAMING[name](options), layout, context)
    if name in BUFFERED:
        return _BufferedIntake(BUFFERED[name](options), layout, context, spill_dir)
    known = ", ".join(aggregator_names())
    raise ConfigError(f"no aggregator is called {name!r}; there are: {known}")
