"""Process trees: whole, also when a grandchild has left the session and its parent is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.processes import ProcessTree, all_processes

DEADLINE_S = 20.0
# A child that starts a grandchild in a session of its own, as Flower does.
CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {grandchild!r}], start_new_session=True)
open({report!r}, "w").write(str(child.pid))
time.sleep(600)
"""
OBEDIENT = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, "the condition did not come true in time"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    return any(process.pid == pid and process.state != "Z" for process in all_processes())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[bytes], int]]]:
    started: list[int] = []

    def start_pair(grandchild: str) -> tuple[subprocess.Popen[bytes], int]:
        report = tmp_path / "pid"
        source = CHILD.format(grandchild=grandchild, report=str(report))
        child = subprocess.Popen([sys.executable, "-c", source])
        started.append(child.pid)
        wait_until(lambda: report.exists() and report.read_text() != "")
        started.append(int(report.read_text()))
        return child, started[-1]

    yield start_pair
    for pid in started:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_grandchild_in_another_session_belongs_to_the_tree(
    start: Callable[[str], tuple[subprocess.Popen[bytes], int]],
) -> None:
    child, grandchild = start(OBEDIENT)
    tree = ProcessTree(child.pid)
    assert {process.pid for process in tree.alive()} == {child.pid, grandchild}
    tree.end(grace_s=10.0)
    assert tree.alive() == []
    assert not runs(grandchild)
    child.wait()


def test_an_orphan_that_was_seen_is_still_found_and_ended(
    start: Callable[[str], tuple[subprocess.Popen[bytes], int]],
) -> None:
    child, grandchild = start(OBEDIENT)
    tree = ProcessTree(child.pid)
    tree.alive()
    child.kill()
    child.wait()
    assert [process.pid for process in tree.alive()] == [grandchild]
    tree.end(grace_s=10.0)
    assert not runs(grandchild)


def test_what_ignores_sigterm_is_killed_after_the_grace_time(
    start: Callable[[str], tuple[subprocess.Popen[bytes], int]],
) -> None:
    child, grandchild = start(STUBBORN)
    tree = ProcessTree(child.pid)
    wait_until(lambda: _ignores_sigterm(grandchild))
    before = time.monotonic()
    tree.end(grace_s=0.3)
    assert 0.3 <= time.monotonic() - before < DEADLINE_S
    assert not runs(grandchild)
    child.wait()


def test_a_reused_pid_is_not_taken_for_a_member(
    start: Callable[[str], tuple[subprocess.Popen[bytes], int]],
) -> None:
    child, grandchild = start(OBEDIENT)
    tree = ProcessTree(child.pid)
    tree._known = {pid: start_time - 1 for pid, start_time in tree._known.items()}
    assert tree.alive() == []
    assert runs(child.pid)
    assert runs(grandchild)
    child.kill()
    child.wait()


def test_the_command_line_is_readable_and_empty_after_the_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", OBEDIENT])
    found = next(process for process in all_processes() if process.pid == child.pid)
    wait_until(lambda: "time.sleep(600)" in found.command)
    child.kill()
    child.wait()
    assert found.command == ""


def _ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
