import json
import math
from pathlib import Path

import pytest

from fedge.errors import CheckpointError
from server.events import EventLog, MetricsLog, jsonable


def test_events_are_appended_with_their_time(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    events.append("one", round=1, loss=math.nan)
    events.append("two")
    lines = [json.loads(line) for line in events.path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["one", "two"]
    assert lines[0]["loss"] is None
    assert lines[1]["time"] >= lines[0]["time"] > 1.7e9


def test_an_event_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    EventLog(tmp_path / "missing").append("lost")
    assert "cannot append" in caplog.text


def test_metrics_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot append"):
        MetricsLog(tmp_path / "missing").append({"round": 1})


def test_reading_nothing_is_empty(tmp_path: Path) -> None:
    assert MetricsLog(tmp_path).read() == []


@pytest.mark.parametrize(
    "found",
    [
        [0, 1, 2],  # the line of the committed round is missing
        [0, 1, 2, 3],  # nothing to do
        [0, 1, 2, 3, 4, 5],  # rounds after a checkpoint that was damaged
        [0, 1, 1, 2, 2, 3, 3],
    ],
)
def test_a_resumed_run_has_each_round_once(tmp_path: Path, found: list[int]) -> None:
    log = MetricsLog(tmp_path)
    for round in found:
        log.append({"round": round})
    log.reconcile({"round": 3})
    log.append({"round": 4})
    assert [line["round"] for line in log.read()] == [0, 1, 2, 3, 4]
    assert len(log.path.read_text().splitlines()) == 5


def test_a_line_that_was_cut_short_is_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.append({"round": 0})
    with log.path.open("a") as file:
        file.write('{"round": 1, "accu')
    log.reconcile({"round": 1, "accuracy": 0.5})
    assert log.read() == [{"round": 0}, {"round": 1, "accuracy": 0.5}]


def test_what_json_has_not_becomes_null() -> None:
    value = {"a": [math.inf, 1.5, (2, math.nan)], 3: None, "b": {"c": -math.inf}}
    assert jsonable(value) == {"a": [None, 1.5, [2, None]], "3": None, "b": {"c": None}}
