"""A round in virtual time, against a plain walk through its events."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.devices.schedule import Outcome, Schedule
from simulation.devices.timeline import Arrivals, arrivals

START = 100.0


def make_schedule(stops: list[float], outcomes: list[int]) -> Schedule:
    size = len(stops)
    codes = np.array(outcomes, np.int8)
    stops_s = START + np.array(stops, np.float64)
    return Schedule(
        clients=np.arange(size) * 10,
        finish_s=np.where(codes == Outcome.OK, stops_s, np.inf),
        stops_s=stops_s,
        outcome=codes,
        bytes_down=np.full(size, 3.0),
        bytes_up=np.where(codes == Outcome.OK, 2.0, 0.5),
    )


schedules = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([0, 0, 0, 1, 2, 3, 4])), min_size=0, max_size=20
).map(lambda rows: make_schedule([float(stop) for stop, _ in rows], [code for _, code in rows]))


@given(schedules, st.floats(0, 15), st.integers(1, 20), st.booleans())
def test_a_round_is_what_a_walk_through_time_gives(
    schedule: Schedule, deadline_s: float, target: int, noticed: bool
) -> None:
    events = sorted(
        (stop, position)
        for position, stop in enumerate((schedule.stops_s - START).tolist())
        if schedule.outcome[position] == Outcome.OK or noticed
    )
    taken: list[int] = []
    open_answers = len(schedule)
    end = 0.0 if not len(schedule) else deadline_s
    for moment, position in events:
        if moment > deadline_s:
            break
        open_answers -= 1
        if schedule.outcome[position] == Outcome.OK:
            taken.append(position * 10)
        if len(taken) == target or not open_answers:
            end = moment
            break

    come = Arrivals(schedule, start_s=START, deadline_s=deadline_s, loss_is_noticed=noticed)
    found: list[int] = []
    while len(found) < target and len(batch := come.next(min(3, target - len(found)))):
        found += batch.tolist()
    assert found == taken
    assert come.num_taken == len(taken)
    filled = len(found) == target
    assert come.ends_at(len(found), filled=filled) == pytest.approx(START + end)
    counts = come.outcomes(len(found))
    assert sum(counts.values()) == len(schedule)
    assert counts["ok"] == len(found)
    num_ok = int((schedule.outcome == Outcome.OK).sum())
    assert counts["late"] == num_ok - len(found)


@given(schedules, st.floats(0, 15), st.floats(0, 15))
def test_a_longer_deadline_loses_nobody_and_ends_no_sooner(
    schedule: Schedule, one: float, other: float
) -> None:
    short, long = sorted((one, other))
    fewer, more = arrivals(schedule, START, short), arrivals(schedule, START, long)
    np.testing.assert_array_equal(more[: len(fewer)], fewer)
    ends = [
        Arrivals(schedule, start_s=START, deadline_s=deadline_s).ends_at(0, filled=False)
        for deadline_s in (short, long)
    ]
    assert ends[0] <= ends[1]


def test_ties_come_in_the_order_asked() -> None:
    schedule = make_schedule([5, 1, 5, 1], [0, 0, 0, 0])
    assert Arrivals(schedule, start_s=START, deadline_s=9).next(4).tolist() == [10, 30, 0, 20]


def test_without_a_deadline_the_round_ends_when_nobody_can_answer_any_more() -> None:
    schedule = make_schedule([5, 8], [Outcome.OK, Outcome.DROPOUT])
    come = Arrivals(schedule, start_s=START, deadline_s=math.inf)
    assert len(come) == 1
    assert come.ends_at(1, filled=False) == START + 8


def test_late_work_is_counted_and_so_are_its_bytes() -> None:
    schedule = make_schedule([2, 30, 1, 1], [0, 0, Outcome.CRASH, Outcome.DROPOUT])
    come = Arrivals(schedule, start_s=START, deadline_s=10)
    assert come.next(9).tolist() == [0]
    assert come.ends_at(1, filled=True) == START + 2
    assert come.outcomes(1) == {"ok": 1, "late": 1, "drop-out": 1, "crash": 1}
    assert come.bytes_down == 12
    assert come.bytes_up == 5


def test_a_round_that_asks_nobody_ends_at_once() -> None:
    come = Arrivals(make_schedule([], []), start_s=START, deadline_s=10)
    assert come.next(5).tolist() == []
    assert come.ends_at(0, filled=False) == START
    assert come.outcomes(0) == {"ok": 0, "late": 0}
