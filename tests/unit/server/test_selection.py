import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import DeadlineExceeded
from server import selection
from server.round_exchange import Exchange
from server.selection import Cohort, DeviceWatch, choose_cohort
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
