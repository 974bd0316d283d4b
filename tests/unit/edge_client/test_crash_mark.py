"""A crash leaves a mark that the next process finds; a kill and a clean end leave none."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from edge_client.crash_mark import CrashMark
mark = CrashMark(Path(sys.argv[1]))
print(mark.take())
if sys.argv[2] == "0":
    mark.close()
else:
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def run(folder: Path, number: int) -> str:
    """Run a process that takes the mark and ends by a signal; return what it found."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(number)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -number, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("number", "found"),
    [(signal.SIGSEGV, True), (signal.SIGABRT, True), (signal.SIGKILL, False), (0, False)],
)
def test_only_a_crash_leaves_a_mark_and_for_one_start(
    tmp_path: Path, number: int, found: bool
) -> None:
    assert run(tmp_path, 0) == "False"
    run(tmp_path, number)
    assert run(tmp_path, 0) == str(found)
    assert run(tmp_path, 0) == "False"


def test_a_folder_that_cannot_be_used_is_no_crash(tmp_path: Path) -> None:
    assert run(tmp_path / "missing", 0) == "False"
