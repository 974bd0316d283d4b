"""How fedge logs: one line a fact on stderr, for a person or for the journal."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TextIO

REPEATS = 5
REPEATS_OF_ONE_PLACE = 30
REPEATS_WITHIN_S = 60.0
MAX_REMEMBERED = 256

# Priorities of syslog(3), by the least level that has them.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
_NUMBERS = re.compile(r"\d+")

log = logging.getLogger(__name__)


def setup_logging(program: str, *, part: str = "") -> None:
    """Log to stderr, one line a record that begins with time and program.

    In the journal of systemd it begins with the priority alone: the journal knows the rest. The
    environment variable ``FEDGE_LOG_LEVEL`` chooses the level (``INFO``). A warning or error that
    repeats is left out for a while.

    Args:
        part: name of a helper process of the program.
    """
    level = os.environ.get("FEDGE_LOG_LEVEL", "INFO").upper()
    known = level in logging.getLevelNamesMapping()
    handler = logging.StreamHandler(sys.stderr)
    if is_journal(sys.stderr):
        handler.setFormatter(JournalFormatter(f"{part}: " if part else ""))
    else:
        name = f"{program}-{part}" if part else program
        handler.setFormatter(LineFormatter(f"%(asctime)s {name} %(levelname)s %(message)s"))
    handler.addFilter(RepeatLimit())
    logging.basicConfig(handlers=[handler], level=level if known else logging.INFO, force=True)
    # Flower imports it, and it tells of each of its plugins.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not known:
        log.warning("FEDGE_LOG_LEVEL=%s is not a level; using INFO", level)


def is_journal(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a stream goes to systemd's journal, as ``JOURNAL_STREAM`` says."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not device.isdecimal() or not inode.isdecimal():
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (status.st_dev, status.st_ino) == (int(device), int(inode))


class LineFormatter(logging.Formatter):
    """Keeps a message on its line, whatever another machine wrote into it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Return the line, without what follows it (a traceback)."""
        return " | ".join(super().formatMessage(record).splitlines())


class JournalFormatter(LineFormatter):
    """Begins each line with its priority (``sd-daemon(3)``), a traceback's lines too.

    Args:
        prefix: of each record's text.
    """

    def __init__(self, prefix: str = "") -> None:
        super().__init__(f"{prefix}%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines for the journal."""
        found = (number for level, number in _PRIORITIES if record.levelno >= level)
        priority = f"<{next(found, _DEBUG)}>"
        return "\n".join(priority + line for line in super().format(record).splitlines())


class RepeatLimit(logging.Filter):
    """Lets a warning through a few times a minute; the next one says how many were left out.

    Records are alike when they have one text, numbers aside; and one line of code may warn only so
    often whatever it says. What an outage or a hostile sender repeats would else fill the disk.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int]] = OrderedDict()

    def _count(self, key: tuple[str, int, str], limit: int) -> tuple[bool, int]:
        """Count a record; return whether it may pass, and how many were left out before it."""
        now = self._clock()
        began, count = self._seen.pop(key, (now, 0))
        left_out = 0
        if now - began >= REPEATS_WITHIN_S:
            began, count, left_out = now, 0, max(0, count - limit)
        self._seen[key] = (began, count + 1)
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return count < limit, left_out

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is logged; add to it what was left out before it."""
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        place = (record.pathname, record.lineno)
        with self._lock:
            passes, left_out = self._count((*place, _NUMBERS.sub("#", text)), REPEATS)
            if passes:
                passes, more = self._count((*place, ""), REPEATS_OF_ONE_PLACE)
                left_out = max(left_out, more)
        if left_out and passes:
            record.msg, record.args = f"{text} ({left_out} more like this were left out)", ()
        return passes
