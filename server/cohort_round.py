"""The training part of a round in one request, over a grid that takes whole cohorts."""

from __future__ import annotations

import logging
from typing import Any, TypeGuard

import numpy as np

from fedge.clock import clock_of
from fedge.errors import DeadlineExceeded
from fedge.messages import WeightsRequest
from server.checkpoint import Checkpoint
from server.cohorts import CohortGrid, CohortRequest, ReportingGrid
from server.evaluation import FederatedEvaluation
from server.model_update import ModelUpdate
from server.selection import Cohort, Indices, draw_cohort
from server.settings import RoundsConfig, ServerConfig

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 30.0
"""Pause between two looks for clients that are awake; in a simulation it takes no real time."""
MAX_EPSILONS = 1000
"""Clients whose ε is kept one by one; of more only the largest, so that state stays small."""


def takes_cohorts(grid: object, config: ServerConfig) -> TypeGuard[CohortGrid]:
    """Tell whether rounds need no message a client."""
    return isinstance(grid, CohortGrid) and grid.takes_cohorts(config)


def await_cohort(grid: CohortGrid, rounds: RoundsConfig, state: Checkpoint, first: bool) -> Cohort:
    """Draw the next round's cohort, once enough clients are there.

    Args:
        first: whether ``rounds.min_devices`` must be there.

    Returns:
        An empty cohort where every client has spent its budget.

    Raises:
        DeadlineExceeded: not enough came within ``rounds.wait_for_devices_s``.
    """
    nodes, clock = grid.all_nodes(), clock_of(grid)
    numbers = np.asarray(nodes) if not isinstance(nodes, range) else None
    exhausted = np.fromiter(state.exhausted, np.int64, len(state.exhausted))

    def is_free(indices: Indices) -> Any:
        asked = _at(nodes, numbers, indices)
        return grid.connected(asked) & ~np.isin(asked, exhausted)

    ends_at = clock.monotonic() + rounds.wait_for_devices_s
    wanted = min(rounds.min_devices, len(nodes)) if first else 1
    while True:
        cohort = draw_cohort(rounds, nodes, is_free, state.seed, state.round + 1)
        enough = len(cohort.nodes) >= wanted or len(cohort.nodes) >= rounds.cohort_size > 0
        if enough or len(state.exhausted) >= len(nodes):
            return cohort
        if clock.monotonic() >= ends_at:
            raise DeadlineExceeded(
                f"{len(cohort.nodes)} of {wanted} clients were free within "
                f"rounds.wait_for_devices_s = {rounds.wait_for_devices_s:g}: the others are away, "
                "busy or have no privacy budget left; raise it or lower rounds.min_devices, and "
                "start again to resume: in simulated time the same wait would end the same way"
            )
        clock.sleep(min(LOOK_AGAIN_S, max(ends_at - clock.monotonic(), 1e-3)))


def cohort_request(
    update: ModelUpdate,
    request: WeightsRequest,
    cohort: Cohort,
    deadline_s: float,
    memory: dict[str, Any],
    num_clients: int,
) -> CohortRequest:
    """Return what the grid is asked in one round."""
    options, context = update.method(request.round, memory, num_clients)
    return CohortRequest(
        request=request,
        key=request.key,
        nodes=cohort.nodes,
        target=cohort.target,
        deadline_s=deadline_s,
        limits=update.limits,
        aggregator=update.aggregator,
        options=options,
        context=context,
    )


def evaluate_cohort(
    grid: CohortGrid, config: ServerConfig, request: WeightsRequest, state: Checkpoint
) -> dict[str, Any]:
    """Let a cohort measure the weights; returns what ``metrics.jsonl`` holds of it."""
    nodes = grid.all_nodes()
    numbers = np.asarray(nodes) if not isinstance(nodes, range) else None

    def is_free(indices: Indices) -> Any:
        return grid.connected(_at(nodes, numbers, indices))

    cohort = draw_cohort(config.rounds, nodes, is_free, state.seed, request.round)
    evaluation = FederatedEvaluation(config.aggregation.max_examples)
    for answer in grid.evaluate_cohort(request, cohort.nodes):
        evaluation.add(answer)
    return evaluation.summary(len(cohort.nodes))


def grid_metrics(grid: object, round: int) -> dict[str, Any]:
    """Return the figures that a grid has of its own for a round; none in a deployment."""
    return grid.take_round_metrics(round) if isinstance(grid, ReportingGrid) else {}


def largest_only(epsilon: dict[int, float]) -> dict[int, float]:
    """Return ε by node, of many nodes the largest alone."""
    if len(epsilon) <= MAX_EPSILONS:
        return epsilon
    node = max(epsilon, key=lambda each: (epsilon[each], -each))
    return {node: epsilon[node]}


def _at(nodes: Any, numbers: Any, indices: Indices) -> Indices:
    """Return the nodes at these positions."""
    if numbers is None:
        return np.asarray(nodes.start + nodes.step * indices, np.int64)
    return np.asarray(numbers[indices], np.int64)
