"""A process and everything it started, found in ``/proc`` and ended as a whole.

Flower's SuperLink starts its helpers in sessions of their own, so a signal to its process group
misses them. What was seen once is remembered: it is found again after its parent has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_POLL_S = 0.05
_KILL_S = 5.0  # SIGKILL works at once, except on a process stuck in the kernel
_ENDED = ("Z", "X")


@dataclass(frozen=True)
class Process:
    """One process; pid and start time together are never used twice.

    Attributes:
        start: clock ticks from boot to its start.
        state: one letter, as `ps` shows it.
    """

    pid: int
    parent: int
    start: int
    state: str

    @property
    def command(self) -> str:
        """Its command line; empty if it has ended."""
        try:
            return (_PROC / str(self.pid) / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return ""


class ProcessTree:
    """A process, its children, theirs, and so on, as far as they were seen.

    Args:
        root: pid of a running child of this process.
    """

    def __init__(self, root: int) -> None:
        self._known: dict[int, int] = {}
        for process in all_processes():
            if process.pid == root:
                self._known[root] = process.start

    def alive(self) -> list[Process]:
        """Return those that run now, remembering new ones; call it now and then."""
        found = {process.pid: process for process in all_processes()}
        members = {pid for pid, start in self._known.items() if _is(found.get(pid), start)}
        grown = True
        while grown:
            children = {pid for pid, process in found.items() if process.parent in members}
            grown = not children <= members
            members |= children
        self._known.update((pid, found[pid].start) for pid in members)
        return [found[pid] for pid in members if found[pid].state not in _ENDED]

    def end(self, grace_s: float) -> None:
        """Ask all of them to end, and after the grace time make them."""
        for process in self.alive():
            _signal(process, signal.SIGTERM)
        give_up = time.monotonic() + grace_s
        while self.alive() and time.monotonic() < give_up:
            time.sleep(_POLL_S)
        # One that was just forked appears in the next look only.
        give_up += _KILL_S
        while (remaining := self.alive()) and time.monotonic() < give_up:
            for process in remaining:
                _signal(process, signal.SIGKILL)
            time.sleep(_POLL_S)


def all_processes() -> Iterator[Process]:
    """Yield every process of this machine (of this container)."""
    for name in os.listdir(_PROC):
        if not name.isdigit():
            continue
        try:
            text = (_PROC / name / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        fields = text.rpartition(")")[2].split()  # the name before it may hold anything
        yield Process(int(name), int(fields[1]), int(fields[19]), fields[0])


def _is(process: Process | None, start: int) -> bool:
    return process is not None and process.start == start


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process.pid, number)
