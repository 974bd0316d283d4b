"""Waiting for a cohort, and what is kept of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aggregation.partial import PartialAggregate
from fedge.errors import DeadlineExceeded
from fedge.messages import Evaluation, Refusal, WeightsRequest
from fedge.training.local import LocalTrainer
from server.checkpoint import Checkpoint
from server.cohort_round import (
    MAX_EPSILONS,
    await_cohort,
    evaluate_cohort,
    grid_metrics,
    largest_only,
    takes_cohorts,
)
from server.cohorts import CohortReport, CohortRequest, Nodes
from server.selection import choose_cohort
from server.settings import RoundsConfig, ServerConfig
from tests.tiny_task import TinyTask
from tests.unit.server.fake_grid import FakeGrid


@dataclass
class FakeClock:
    """Passes only in `sleep`, and never a real second."""

    now_s: float = 100.0
    sleeps: int = 0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.sleeps += 1
        self.now_s += seconds


@dataclass
class FakeCohorts:
    """A grid of whole cohorts whose nodes come and go by its clock.

    Attributes:
        there_s: from when each node is there.
    """

    there_s: dict[int, float]
    answers: dict[int, Evaluation | Refusal] = field(default_factory=dict)
    clock: FakeClock = field(default_factory=FakeClock)
    contiguous: bool = True

    def takes_cohorts(self, config: ServerConfig) -> bool:
        return config.aggregation.max_staleness == 0

    def all_nodes(self) -> Sequence[int]:
        nodes = sorted(self.there_s)
        return range(nodes[0], nodes[-1] + 1) if self.contiguous else nodes

    def connected(self, nodes: Nodes) -> npt.NDArray[np.bool_]:
        return np.array([self.there_s[int(node)] <= self.clock.now_s for node in nodes], np.bool_)

    def train_cohort(
        self, request: CohortRequest, merge: Callable[[PartialAggregate], None]
    ) -> CohortReport:
        raise AssertionError("nothing is trained here")

    def evaluate_cohort(
        self, request: WeightsRequest, nodes: Sequence[int]
    ) -> Iterable[Evaluation | Refusal]:
        return (self.answers[node] for node in nodes)


TRAINER = LocalTrainer(TinyTask())
STATE = Checkpoint("run", 4, TRAINER.layout, TRAINER.initial_weights(3), seed=3)


def await_on(
    grid: FakeCohorts, exhausted: frozenset[int] = frozenset(), first: bool = False, **rounds: Any
) -> tuple[int, ...]:
    state = replace(STATE, exhausted=exhausted)
    return await_cohort(grid, RoundsConfig(**rounds), state, first).nodes


def always(num: int) -> dict[int, float]:
    return {1000 + client: 0.0 for client in range(num)}


@pytest.mark.parametrize("contiguous", [True, False])
def test_where_all_are_there_the_cohort_is_that_of_a_deployment(contiguous: bool) -> None:
    grid = FakeCohorts(always(30), contiguous=contiguous)
    expected = choose_cohort(RoundsConfig(cohort_size=7), grid.all_nodes(), STATE.seed, 5)
    assert await_on(grid, cohort_size=7) == expected.nodes
    assert grid.clock.sleeps == 0


def test_nodes_that_are_no_range_are_asked_by_their_own_numbers() -> None:
    grid = FakeCohorts({7: 0.0, 1000: 0.0, 2**62: 0.0}, contiguous=False)
    assert await_on(grid) == (7, 1000, 2**62)


def test_it_waits_in_the_grids_time_until_somebody_is_there() -> None:
    grid = FakeCohorts({1: 500.0, 2: 900.0})
    assert await_on(grid, wait_for_devices_s=600) == (1,)
    assert 500 <= grid.clock.now_s <= 530


def test_the_first_round_waits_for_as_many_as_are_configured() -> None:
    grid = FakeCohorts({1: 0.0, 2: 150.0, 3: 240.0})
    assert await_on(grid, first=True, min_devices=3) == (1, 2, 3)
    assert 240 <= grid.clock.now_s <= 270


def test_a_first_round_never_waits_for_more_than_there_are() -> None:
    grid = FakeCohorts(always(3))
    assert await_on(grid, first=True, min_devices=50) == (1000, 1001, 1002)
    assert grid.clock.sleeps == 0


def test_a_small_cohort_does_not_wait_for_those_it_will_not_ask() -> None:
    grid = FakeCohorts(always(20))
    assert len(await_on(grid, first=True, min_devices=10, cohort_size=4)) == 4
    assert grid.clock.sleeps == 0


def test_whoever_waits_too_long_is_told_for_how_many() -> None:
    grid = FakeCohorts({1: 0.0, 2: 1e9, 3: 1e9})
    with pytest.raises(DeadlineExceeded, match=r"1 of 3 clients.*wait_for_devices_s = 90"):
        await_on(grid, first=True, min_devices=3, wait_for_devices_s=90)
    assert grid.clock.now_s == pytest.approx(190, abs=0.01)


def test_those_without_budget_are_not_asked() -> None:
    grid = FakeCohorts(always(5))
    assert await_on(grid, frozenset({1001, 1003})) == (1000, 1002, 1004)


def test_nobody_is_asked_when_all_have_spent_their_budget() -> None:
    grid = FakeCohorts(always(3))
    assert await_on(grid, frozenset({1000, 1001, 1002})) == ()
    assert grid.clock.sleeps == 0


def test_somebody_with_budget_who_is_away_is_waited_for() -> None:
    grid = FakeCohorts({1: 0.0, 2: 1e9})
    with pytest.raises(DeadlineExceeded, match="no privacy budget left"):
        await_on(grid, frozenset({1}), wait_for_devices_s=60)


def test_a_cohort_evaluates_and_refusals_are_counted() -> None:
    grid = FakeCohorts({1: 0.0, 2: 0.0, 3: 0.0, 4: 1e9})
    grid.answers = {
        1: Evaluation(10.0, {"accuracy": 0.5}),
        2: Evaluation(30.0, {"accuracy": 1.0}),
        3: Refusal("no-data", "this client has no holdout examples"),
    }
    request = WeightsRequest(
        "run", 5, 9, STATE.layout, STATE.weights, ServerConfig().train, codec="raw"
    )
    summary = evaluate_cohort(grid, ServerConfig(), request, STATE)
    assert (summary["num_asked"], summary["num_clients"]) == (3, 2)
    assert summary["accuracy"] == pytest.approx(0.875)
    assert summary["refused"] == {"no-data": 1}


def test_of_many_clients_only_the_largest_epsilon_is_kept() -> None:
    few = {node: node / 10 for node in range(MAX_EPSILONS)}
    assert largest_only(few) == few
    many = {**few, 5000: 3.0, 4000: 500.5, 3000: 500.5}
    assert largest_only(many) == {3000: 500.5}  # of equal ones always the same


def test_a_deployments_grid_takes_no_cohorts_and_has_no_figures() -> None:
    grid = FakeGrid({})
    assert not takes_cohorts(grid, ServerConfig())
    assert grid_metrics(grid, 1) == {}
    assert takes_cohorts(FakeCohorts({}), ServerConfig())
