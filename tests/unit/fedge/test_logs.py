import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedge.logs import REPEATS, REPEATS_OF_ONE_PLACE, REPEATS_WITHIN_S, RepeatLimit, is_journal

PROGRAM = """
import logging
from fedge.logs import setup_logging
setup_logging("fedge-x", part={part!r})
log = logging.getLogger("a")
log.debug("unseen")
log.info("fact")
log.warning("a server said %s", "one\\nERROR two")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("bug")
"""


def run(log: Path, *, journal: bool, part: str = "") -> list[str]:
    """Run the program with its stderr in a file that it takes for the journal, or not."""
    with log.open("wb") as file:
        status = os.fstat(file.fileno())
        inode = status.st_ino if journal else status.st_ino + 1
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(part=part)],
            stderr=file,
            check=True,
            env={**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{inode}"},
        )
    return log.read_text().splitlines()


def test_in_the_journal_each_line_has_its_priority_and_no_time(tmp_path: Path) -> None:
    lines = run(tmp_path / "log", journal=True)
    assert lines[:3] == ["<6>fact", "<4>a server said one | ERROR two", "<3>bug"]
    assert lines[3] == "<3>Traceback (most recent call last):"
    assert all(line.startswith("<3>") for line in lines[2:])
    assert lines[-1] == "<3>ZeroDivisionError: division by zero"


def test_a_helper_process_says_its_part(tmp_path: Path) -> None:
    assert run(tmp_path / "log", journal=True, part="training")[0] == "<6>training: fact"
    assert run(tmp_path / "log", journal=False, part="training")[0].endswith(
        " fedge-x-training INFO fact"
    )


def test_another_stream_than_the_journals_gets_time_and_program(tmp_path: Path) -> None:
    lines = run(tmp_path / "log", journal=False)
    assert lines[0].endswith(" fedge-x INFO fact")
    assert lines[1].endswith(" fedge-x WARNING a server said one | ERROR two")


@pytest.mark.parametrize("text", ["", "1", "1:", ":2", "a:b", "-1:2"])
def test_what_is_no_journal_stream_is_none(text: str) -> None:
    assert not is_journal(sys.__stderr__ or sys.stderr, {"JOURNAL_STREAM": text})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(text: str, level: int = logging.WARNING, line: int = 1) -> logging.LogRecord:
    return logging.LogRecord("a", level, "file.py", line, text, None, None)


def test_a_warning_that_repeats_is_left_out_and_counted() -> None:
    clock = Clock()
    limit = RepeatLimit(clock)
    passed = [limit.filter(record(f"outage {number}")) for number in range(REPEATS + 7)]
    assert passed == [True] * REPEATS + [False] * 7
    assert limit.filter(record("another fact"))
    clock.now = REPEATS_WITHIN_S
    late = record("outage 99")
    assert limit.filter(late)
    assert late.getMessage() == "outage 99 (7 more like this were left out)"
    assert limit.filter(record("outage 100"))


def test_one_line_of_code_may_warn_only_so_often_whatever_it_says() -> None:
    limit = RepeatLimit(Clock())
    texts = ("".join(chr(97 + int(digit)) for digit in str(number)) for number in range(500))
    assert sum(limit.filter(record(text)) for text in texts) == REPEATS_OF_ONE_PLACE
    assert limit.filter(record("from elsewhere", line=2))


def test_facts_are_never_left_out() -> None:
    limit = RepeatLimit(Clock())
    assert all(limit.filter(record("fact", logging.INFO)) for _ in range(100))
