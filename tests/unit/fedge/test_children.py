"""Children never outlive what started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedge.children import start_child, stop_child
from fedge.errors import ConfigError

SPAWNS_GRANDCHILD = """
import signal, subprocess, sys, time
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
STARTS_CHILD = """
import sys, time
from pathlib import Path
from fedge.children import start_child
child = start_child(
    [sys.executable, "-c", "import time; time.sleep(600)"], log=Path(sys.argv[1])
)
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come true in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("stubborn", [False, True])
def test_stopping_a_child_ends_its_own_children(tmp_path: Path, stubborn: bool) -> None:
    log = tmp_path / "log"
    code = SPAWNS_GRANDCHILD.format(stubborn=stubborn)
    child = start_child([sys.executable, "-c", code], log=log)
    wait_for(lambda: log.read_text().endswith("\n"))
    grandchild = int(log.read_text())
    status = stop_child(child, grace_s=0.5)
    assert status == (-signal.SIGKILL if stubborn else -signal.SIGTERM)
    wait_for(lambda: not alive(grandchild))


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_CHILD, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()
    assert alive(child)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child))


def test_ctrl_c_in_the_terminal_does_not_reach_a_child(tmp_path: Path) -> None:
    child = start_child(
        [sys.executable, "-c", "import time; time.sleep(600)"], log=tmp_path / "log"
    )
    assert os.getpgid(child.pid) != os.getpgid(0)
    stop_child(child)


def test_a_program_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot start /no/such/program"):
        start_child(["/no/such/program"], log=tmp_path / "log")
