"""A part of a round's aggregate, made elsewhere: what a worker of a simulation sends back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aggregation.contracts import AggregatorOptions, ClientUpdate, RoundContext
from aggregation.methods import BUFFERED, STREAMING
from fedge.params import Layout


@dataclass(frozen=True, eq=False)
class PartialAggregate:
    """The updates of some clients, added up as far as the method allows.

    Attributes:
        state: of a streaming method; None for a buffered one.
        updates: the updates themselves, for a buffered method.
    """

    num_updates: int
    state: Any = None
    updates: tuple[ClientUpdate, ...] = ()


class ShardAggregate:
    """Adds up the updates of one shard, for `RoundAggregate.merge` of the whole round.

    Args:
        name: a registered aggregator.
        options: what it is configured with.
        context: what the method may know of the round.

    Raises:
        ConfigError: no aggregator has that name.
    """

    def __init__(
        self, name: str, options: AggregatorOptions, layout: Layout, context: RoundContext
    ) -> None:
        streams = name in STREAMING
        self._method = STREAMING[name](options) if streams else None
        self._state: Any = None if self._method is None else self._method.init(layout, context)
        self._updates: list[ClientUpdate] = []
        self._num_updates = 0
        if not streams:
            BUFFERED[name]  # an unknown name is refused here

    def add(self, update: ClientUpdate) -> None:
        """Add one admitted update; a buffered method keeps its delta, so it must stay as it is."""
        self._num_updates += 1
        if self._method is None:
            self._updates.append(update)
        else:
            self._state = self._method.add(self._state, update)

    def partial(self) -> PartialAggregate:
        """Return what was added; nothing may be added any more."""
        return PartialAggregate(self._num_updates, self._state, tuple(self._updates))
