"""Reading files that another process appends to."""

import json
from pathlib import Path

import pytest

from server.event_tail import EventTail, last_object


def test_only_what_is_appended_afterwards_is_read_and_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind":"old"}\n')
    tail = EventTail(path)
    assert tail.read() == []
    with path.open("a") as file:
        file.write('{"kind":"one"}\n{"kind":"t')
        file.flush()
        assert tail.read() == [{"kind": "one"}]
        file.write('wo"}\n')
    assert tail.read() == [{"kind": "two"}]
    assert tail.read() == []


def test_a_file_may_appear_later(tmp_path: Path) -> None:
    tail = EventTail(tmp_path / "events.jsonl")
    assert tail.read() == []
    (tmp_path / "events.jsonl").write_text('{"kind":"first"}\n')
    assert tail.read() == [{"kind": "first"}]


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    path.write_text('{"kind":\n\xff\n[1]\n{"kind":"good"}\n', encoding="latin-1")
    assert tail.read() == [{"kind": "good"}]


@pytest.mark.parametrize("padding", [0, 10, 70_000, 300_000])
def test_the_last_whole_object_is_found_however_long_it_is(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "metrics.jsonl"
    last = {"round": 2, "padding": "x" * padding}
    path.write_text('{"round":1}\n' + json.dumps(last) + '\n{"round":3,"cut')
    assert last_object(path) == last


def test_no_file_or_no_whole_line_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_object(path) is None
    path.write_text("")
    assert last_object(path) is None
    path.write_text('{"round":1}')
    assert last_object(path) is None
