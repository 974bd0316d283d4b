"""Reading what another process is still writing."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from simulation.jsonl import read_jsonl


def test_a_file_that_is_not_there_yet_has_no_lines(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_whole_lines_come_in_order_and_empty_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0}\n\n{"round": 1}\n')
    assert read_jsonl(path) == [{"round": 0}, {"round": 1}]


def test_a_line_that_a_killed_writer_cut_short_is_left_out_wherever_it_stands(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 0}\n{"round": 1, "accu\n{"round": 2}\n')
    assert read_jsonl(path) == [{"round": 0}, {"round": 2}]


@given(cut=st.integers(min_value=0))
def test_wherever_a_growing_file_ends_exactly_its_whole_lines_are_read(
    tmp_path: Path, cut: int
) -> None:
    objects = [{"round": number, "text": "ε spent"} for number in range(3)]
    lines = [json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in objects]
    content = b"".join(lines)
    written = content[: cut % (len(content) + 1)]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(written)
    assert read_jsonl(path) == objects[: written.count(b"\n")]
