"""Tells a process that crashed from one that was killed: Python's fault handler leaves a mark.

SIGSEGV, SIGFPE, SIGABRT (a watchdog's too), SIGBUS and SIGILL leave the stacks of all threads in a
file; SIGKILL, a power cut and an empty battery leave nothing.
"""

from __future__ import annotations

import faulthandler
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

FILE = "crash.txt"
LAST_FILE = "last-crash.txt"
_MAX_LOGGED = 8000


class CrashMark:
    """The mark of one daemon; while it is open a crash of this process leaves one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def take(self) -> bool:
        """Tell whether the last process crashed, log where, and watch over this one.

        The stacks stay in ``last-crash.txt``.
        """
        try:
            left = self._path.read_text(errors="replace") if self._path.exists() else ""
            if left:
                os.replace(self._path, self._path.with_name(LAST_FILE))
            # Not closed: the fault handler writes to it when nothing else works any more.
            faulthandler.enable(self._path.open("wb", buffering=0))
        except OSError as error:
            log.warning("%s cannot be used: %s", self._path, error.strerror)
            return False
        if left:
            log.error("the last process crashed:\n%s", left[:_MAX_LOGGED])
        return bool(left)

    def close(self) -> None:
        """Stop watching: from now on a crash shows on stderr alone."""
        faulthandler.enable()
