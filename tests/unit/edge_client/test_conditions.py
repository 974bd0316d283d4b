from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.conditions import (
    CHECK_INTERVAL_S,
    CONDITIONS,
    Gate,
    OpenHours,
    ProcessorLoad,
    Temperature,
    read_processor,
    read_temperature,
)
from edge_client.settings import TrainingProcessConfig
from fedge.config import build
from fedge.errors import ConfigError

DAY = datetime(2026, 11, 23)


def at(clock: str) -> OpenHours:
    hour, minute = map(int, clock.split(":"))
    return OpenHours("22:00-06:00", lambda: DAY + timedelta(hours=hour, minutes=minute))


@pytest.mark.parametrize("clock", ["22:00", "23:59", "00:00", "05:59"])
def test_training_is_open_within_its_hours(clock: str) -> None:
    assert at(clock).reason() == ""


@pytest.mark.parametrize("clock", ["06:00", "12:00", "21:59"])
def test_training_waits_outside_of_its_hours(clock: str) -> None:
    assert "training.hours (22:00-06:00)" in at(clock).reason()


@given(st.times(), st.times(), st.times())
def test_a_span_and_the_one_from_its_end_to_its_begin_make_a_day(
    begin: "datetime", end: "datetime", now: "datetime"
) -> None:
    begin, end = begin.replace(second=0, microsecond=0), end.replace(second=0, microsecond=0)
    if begin == end:
        return
    spans = [f"{a:%H:%M}-{b:%H:%M}" for a, b in ((begin, end), (end, begin))]
    moment = DAY.replace(hour=now.hour, minute=now.minute, second=now.second)
    reasons = [OpenHours(span, lambda: moment).reason() for span in spans]
    assert sum(not reason for reason in reasons) == 1


def test_training_waits_above_a_temperature_and_until_it_is_well_below() -> None:
    degrees: Iterator[float | None] = iter([60, 74, 76, 73, 71, 69, 74, 76, None])
    condition = Temperature(75.0, lambda: next(degrees))
    waits = [bool(condition.reason()) for _ in range(8)]
    assert waits == [False, True, True, True, False, False, True, False]


def test_without_a_sensor_there_is_no_limit_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert Temperature(75.0, lambda: None).reason() == ""
    assert "max_temperature_c has no effect" in caplog.text


def test_only_the_load_of_others_counts_and_it_must_fall_well_below_the_limit() -> None:
    # Two cores: busy and total seconds of both, and what of it was this process.
    times = iter([(0, 0), (100, 200), (220, 400), (310, 600), (380, 800), (560, 1000)])
    own = iter([0, 100, 120, 120, 120, 260])
    condition = ProcessorLoad(40.0, lambda: next(times), lambda: next(own))
    reasons = [condition.reason() for _ in range(5)]
    # Others: 0, 50, 45, 35, 20 per cent; having waited, it goes on at 32.
    assert [bool(reason) for reason in reasons] == [False, True, True, True, False]
    assert "use 50 % of the processor" in reasons[1]


def test_a_load_asked_twice_in_one_tick_says_the_same_as_before() -> None:
    times = iter([(0, 0), (100, 100), (100, 100)])
    condition = ProcessorLoad(40.0, lambda: next(times), lambda: 0.0)
    assert condition.reason() == condition.reason() != ""


def test_the_kernels_processor_times_are_read(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 400 50 6 7 8 99 9\ncpu0 1 2 3 4 5 6 7 8 9 9\n")
    busy, total = read_processor(tmp_path / "stat")
    assert busy / total == pytest.approx((100 + 20 + 30 + 6 + 7 + 8) / 621)
    busy, total = read_processor()
    assert 0 < busy < total


def test_the_hottest_zone_that_can_be_read_counts(tmp_path: Path) -> None:
    assert read_temperature(tmp_path) is None
    for number, text in enumerate(["41500\n", "68250\n", "nonsense"]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text(text)
    (tmp_path / "thermal_zone9").mkdir()
    assert read_temperature(tmp_path) == 68.25


class Counted:
    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.num_asked = 0

    def reason(self) -> str:
        self.num_asked += 1
        return self.reasons[min(self.num_asked, len(self.reasons)) - 1]


def test_a_gate_asks_all_conditions_once_a_second() -> None:
    clock = [100.0]
    conditions = [Counted("hot", ""), Counted("", "late", "late", "")]
    gate = Gate(list(conditions), lambda: clock[0])
    said = []
    for step in range(8):
        clock[0] = 100.0 + step * CHECK_INTERVAL_S / 2
        said.append(gate.reason())
    assert said == ["hot", "hot", "late", "late", "late", "late", "", ""]
    assert [condition.num_asked for condition in conditions] == [4, 4]


def test_nothing_is_asked_for_unless_it_is_configured() -> None:
    assert not Gate.of(TrainingProcessConfig())
    config = TrainingProcessConfig(hours="22:00-06:00", max_cpu_percent=50, max_temperature_c=80)
    made = [CONDITIONS[name](config) for name in CONDITIONS]
    assert {type(condition) for condition in made} == {OpenHours, ProcessorLoad, Temperature}


@pytest.mark.parametrize("hours", ["22-6", "22:00", "25:00-06:00", "06:00-06:00", "a-b"])
def test_hours_that_say_nothing_are_refused_by_their_key(hours: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.hours"):
        build(TrainingProcessConfig, {"hours": hours}, "training.")
