"""What the engine's driver and its workers say to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aggregation.partial import PartialAggregate
from fedge.messages import Evaluation, Refusal, WeightsRequest
from server.cohorts import CohortRequest
from simulation.state_store import StoredState

SHARD_SIZE = 32
"""Clients whose updates are added up as one. It does not depend on the number of workers, so
neither does the order in which anything is added."""


@dataclass(frozen=True, eq=False)
class Run:
    """Clients that one worker trains in one call; whole shards, but for the cohort's last one.

    Attributes:
        states: of those that have one.
    """

    clients: tuple[int, ...]
    states: dict[int, StoredState] = field(default_factory=dict)


@dataclass(eq=False)
class ShardResult:
    """What became of one shard.

    Attributes:
        refused: clients whose updates do not count, by reason.
        epsilon: ε spent by client; exhausted: clients without budget.
        num_bits, distortion: sums over the added updates, of their encoding.
        failure: client and traceback of the first that failed.
        states: of clients that have something to remember.
    """

    partial: PartialAggregate
    refused: Counter[str] = field(default_factory=Counter)
    epsilon: dict[int, float] = field(default_factory=dict)
    exhausted: list[int] = field(default_factory=list)
    num_bits: float = 0.0
    distortion: float = 0.0
    failure: tuple[int, str] | None = None
    states: dict[int, StoredState] = field(default_factory=dict)


class WorkerPool(Protocol):
    """Runs shards somewhere; results come in the order of the runs."""

    @property
    def num_workers(self) -> int:
        """How many runs are worked on at once."""
        ...

    def train(self, request: CohortRequest, runs: Sequence[Run]) -> Iterator[list[ShardResult]]:
        """Yield the shards of each run."""
        ...

    def evaluate(
        self, request: WeightsRequest, runs: Sequence[Run]
    ) -> Iterator[list[Evaluation | Refusal]]:
        """Yield what the clients of each run measured."""
        ...

    def close(self) -> None:
        """End the workers; closing twice is fine."""
        ...
