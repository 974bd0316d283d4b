import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import DeadlineExceeded
from server import selection
from server.round_exchange import Exchange
from server.selection import Cohort, DeviceWatch, Indices, choose_cohort, draw_cohort
from server.settings import RoundsConfig
from tests.unit.server.fake_grid import FakeGrid, honest


def watch_on(grid: FakeGrid, **rounds: Any) -> DeviceWatch:
    config = RoundsConfig(poll_interval_s=0.001, **rounds)
    return DeviceWatch(Exchange(grid, config.poll_interval_s), config)


@given(
    st.sets(st.integers(0, 2**64 - 1), max_size=40),
    st.integers(0, 20),
    st.floats(1, 3),
    st.integers(1, 100),
)
def test_a_cohort_is_drawn_once_each_from_the_candidates(
    nodes: set[int], cohort_size: int, over_selection: float, round: int
) -> None:
    rounds = RoundsConfig(cohort_size=cohort_size, over_selection=over_selection)
    cohort = choose_cohort(rounds, sorted(nodes), 0, round)
    assert set(cohort.nodes) <= nodes
    assert len(set(cohort.nodes)) == len(cohort.nodes)
    assert cohort.target == min(cohort_size or len(nodes), len(nodes))
    assert cohort.target <= len(cohort.nodes) <= max(1, cohort.target * over_selection + 1)
    assert cohort == choose_cohort(rounds, sorted(nodes, reverse=True), 0, round)


def test_all_are_asked_where_no_cohort_size_is_set() -> None:
    assert choose_cohort(RoundsConfig(), [5, 3, 4], 0, 1) == Cohort((3, 4, 5), 3)


def test_rounds_and_seeds_draw_differently() -> None:
    rounds = RoundsConfig(cohort_size=5)
    drawn = {choose_cohort(rounds, range(100), seed, r).nodes for seed in (0, 1) for r in (1, 2)}
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("target", "fraction", "quorum"), [(10, 0.3, 3), (3, 0.5, 2), (5, 0.01, 1), (4, 1.0, 4)]
)
def test_the_quorum_is_the_fraction_rounded_up_and_never_none(
    target: int, fraction: float, quorum: int
) -> None:
    assert Cohort((), target).quorum(fraction) == quorum


def test_waiting_says_for_how_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "LOG_INTERVAL_S", 0.0)
    grid = FakeGrid({1: honest})
    watch = watch_on(grid)

    def connect_later(operation: str) -> None:
        if "waiting for 1 more" in caplog.text:
            grid.clients[2] = honest

    grid.faults = connect_later
    with caplog.at_level(logging.INFO):
        assert watch.wait(2, frozenset()) == [1, 2]
    assert "1 of 2 devices are connected, waiting for 1 more" in caplog.text


def test_nodes_without_budget_are_left_out_and_none_remain_when_all_are() -> None:
    watch = watch_on(FakeGrid({1: honest, 2: honest}))
    assert watch.wait(1, {1}) == [2]
    assert watch.wait(1, {1, 2}) == []
    assert watch.free({2}) == [1]


def test_a_node_that_may_come_back_with_budget_is_waited_for() -> None:
    grid = FakeGrid({1: honest, 2: honest})
    watch = watch_on(grid, wait_for_devices_s=0.05)
    watch.wait(2, set())
    del grid.clients[2]
    with pytest.raises(DeadlineExceeded, match="no device was free"):
        watch.wait(1, {1})


def test_an_unreachable_superlink_is_named(tmp_path: Path) -> None:
    def down(operation: str) -> None:
        raise ConnectionRefusedError("connection refused")

    watch = watch_on(FakeGrid({1: honest}, faults=down), wait_for_devices_s=0.05)
    with pytest.raises(DeadlineExceeded, match=r"SuperLink could not be reached.*refused"):
        watch.wait(1, set())


class Looks:
    """Tells which positions are free, and remembers which were asked about.

    Attributes:
        seen: positions in the order they were looked at.
    """

    def __init__(self, free: Callable[[Indices], npt.NDArray[np.bool_]]) -> None:
        self.seen: list[int] = []
        self._free = free

    def __call__(self, indices: Indices) -> npt.NDArray[np.bool_]:
        self.seen += indices.tolist()
        return self._free(indices)


def everybody(indices: Indices) -> npt.NDArray[np.bool_]:
    return np.ones(len(indices), np.bool_)


@given(st.integers(1, 300), st.integers(0, 40), st.floats(1, 3), st.integers(1, 50))
def test_where_all_are_free_a_cohort_is_drawn_as_from_candidates(
    num_nodes: int, cohort_size: int, over_selection: float, round: int
) -> None:
    rounds = RoundsConfig(cohort_size=cohort_size, over_selection=over_selection)
    nodes = range(1000, 1000 + num_nodes)
    expected = choose_cohort(rounds, nodes, 7, round)
    assert draw_cohort(rounds, nodes, everybody, 7, round) == expected
    assert draw_cohort(rounds, list(nodes), everybody, 7, round) == expected


@given(
    st.lists(st.booleans(), min_size=1, max_size=200),
    st.integers(0, 40),
    st.floats(1, 3),
    st.integers(1, 50),
)
def test_only_free_nodes_are_drawn_each_once_and_all_of_them_if_they_are_few(
    flags: list[bool], cohort_size: int, over_selection: float, round: int
) -> None:
    rounds = RoundsConfig(cohort_size=cohort_size, over_selection=over_selection)
    nodes = range(5, 5 + len(flags))
    is_free = np.array(flags)
    looks = Looks(lambda indices: is_free[indices])
    cohort = draw_cohort(rounds, nodes, looks, 7, round)
    free = {node for node, flag in zip(nodes, flags, strict=True) if flag}
    wanted = len(choose_cohort(rounds, nodes, 7, round).nodes)
    assert set(cohort.nodes) <= free
    assert list(cohort.nodes) == sorted(set(cohort.nodes))
    assert len(cohort.nodes) == min(wanted, len(free))
    assert cohort.target == min(cohort_size or len(nodes), len(cohort.nodes))
    assert len(set(looks.seen)) == len(looks.seen)
    assert cohort == draw_cohort(rounds, nodes, looks, 7, round)


@given(st.integers(1, 50))
def test_among_those_who_are_free_none_is_preferred(round: int) -> None:
    rounds = RoundsConfig(cohort_size=20)
    cohort = draw_cohort(rounds, range(1000), lambda indices: indices % 2 == 0, round, round)
    assert len(cohort.nodes) == 20
    # Twenty of five hundred at random: all of them in one half happens once in a million times.
    assert cohort.nodes[0] < 500 < cohort.nodes[-1]


@pytest.mark.parametrize("num_nodes", [10**4, 10**6, 10**9])
def test_what_a_draw_looks_at_does_not_depend_on_the_population(num_nodes: int) -> None:
    rounds = RoundsConfig(cohort_size=50)
    looks = Looks(lambda indices: indices % 4 == 0)
    cohort = draw_cohort(rounds, range(num_nodes), looks, 1, 1)
    assert len(cohort.nodes) == 50
    assert len(looks.seen) < 1000
