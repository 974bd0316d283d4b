"""What the server and a grid that trains whole cohorts in one call say to each other.

One request takes the place of a message a client, and partial aggregates that of their updates.
Gate, clipping and sums run inside the grid, by the same functions of `aggregation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from aggregation.contracts import AggregatorOptions, RoundContext
from aggregation.gate import GateLimits
from aggregation.partial import PartialAggregate
from fedge.messages import Evaluation, Refusal, RoundKey, WeightsRequest
from server.round_commit import TrainingReport
from server.settings import ServerConfig

Nodes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CohortRequest:
    """Train these nodes from one parent and add their updates up.

    Attributes:
        key: of the request, which takes a while to compute twice.
        nodes: whom to ask, in order.
        target: good updates that end the round at once.
        deadline_s: from now, when it ends whatever is missing.
        limits: what the gate lets through.
        options: of the aggregator, without its source of noise: that is added at the end.
        context: what the aggregator may know of the round.
    """

    request: WeightsRequest
    key: RoundKey
    nodes: tuple[int, ...]
    target: int
    deadline_s: float
    limits: GateLimits
    aggregator: str
    options: AggregatorOptions
    context: RoundContext


@dataclass
class CohortReport:
    """How a cohort's training went; its partial aggregates were merged on the way.

    Attributes:
        num_late: updates that would have come after the round's end.
        refused: clients whose updates do not count, by reason.
        epsilon: ε spent by node; of a large cohort only of the node that spent most.
        exhausted: nodes that have no privacy budget left.
        cost: what the encoding of the updates cost, by metric.
        failure: node and text of the first client that failed; empty for none.
    """

    num_accepted: int = 0
    num_late: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    epsilon: dict[int, float] = field(default_factory=dict)
    exhausted: set[int] = field(default_factory=set)
    cost: dict[str, float | None] = field(default_factory=dict)
    failure: tuple[int, str] | None = None

    def training(self, began: TrainingReport, num_selected: int) -> TrainingReport:
        """Return what is committed of it."""
        return replace(
            began,
            num_selected=num_selected,
            num_accepted=self.num_accepted,
            num_late=self.num_late,
            cost=self.cost,
            refused=dict(self.refused),
        )


@runtime_checkable
class CohortGrid(Protocol):
    """A Flower grid that can also train and evaluate a whole cohort in one call."""

    def takes_cohorts(self, config: ServerConfig) -> bool:
        """Tell whether what is configured can be done without a message a client."""
        ...

    def all_nodes(self) -> Sequence[int]:
        """Return every node there is, connected or not, as a sequence that costs nothing."""
        ...

    def connected(self, nodes: Nodes) -> npt.NDArray[np.bool_]:
        """Tell which of these nodes could answer right now."""
        ...

    def train_cohort(
        self, request: CohortRequest, merge: Callable[[PartialAggregate], None]
    ) -> CohortReport:
        """Train, and hand over each partial aggregate in the cohort's order."""
        ...

    def evaluate_cohort(
        self, request: WeightsRequest, nodes: Sequence[int]
    ) -> Iterable[Evaluation | Refusal]:
        """Return what each node measured."""
        ...


@runtime_checkable
class ReportingGrid(Protocol):
    """A grid that has figures of its own for each round's line of metrics."""

    def take_round_metrics(self, round: int) -> dict[str, Any]:
        """Return those of a round; called once, just before it is committed."""
        ...
