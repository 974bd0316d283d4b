"""Versions under which the daemon dies: counted on disk, because the daemon is not there to see it.

Before a version is given to the runtime its id is noted; a healthy while later, or at a clean
stop, the note goes. A note found at the start is a death of that version: a crash, or a kill from
outside, of which it takes more to blame a version. Where the version before dies as well, the fault
lies elsewhere (power, memory, the machine) and no version is blamed.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedge.durable import write_atomically

log = logging.getLogger(__name__)

FILE = "starts.json"


@dataclass(frozen=True)
class Blame:
    """What the deaths so far say.

    Attributes:
        refuse: version to serve no more; empty is none.
        allow: version that was refused for deaths that the one before it has too.
    """

    refuse: str = ""
    allow: str = ""


@dataclass(frozen=True)
class _Record:
    open: str = ""
    crashes: dict[str, int] = field(default_factory=dict)
    kills: dict[str, int] = field(default_factory=dict)
    suspect: str = ""
    excused: bool = False


class CrashGuard:
    """Counts deaths in one small file; of one daemon, not safe across threads.

    A file that cannot be written is logged: predictions matter more than the count.

    Args:
        folder: where the file is kept; must exist.
        max_crashes: so many make a version refused; 0 counts nothing.
        max_kills: so many deaths of any kind do.
    """

    def __init__(self, folder: Path, max_crashes: int, max_kills: int) -> None:
        self._path = folder / FILE
        self._max_crashes = max_crashes
        self._max_kills = max_kills
        self._record = _Record()

    def open(self, *, crashed: bool) -> Blame:
        """Count what the last process left; call once, before anything is served.

        Args:
            crashed: whether it died by itself; else it was killed, or stopped cleanly.
        """
        if not self._max_crashes:
            return Blame()
        record, blame = self._read(), Blame()
        died = record.open
        if died and not record.excused:
            crashes = record.crashes.get(died, 0) + crashed
            kills = record.kills.get(died, 0) + (not crashed)
            record = replace(
                record,
                crashes={**record.crashes, died: crashes},
                kills={**record.kills, died: kills},
            )
            if crashes >= self._max_crashes or crashes + kills >= self._max_kills:
                record, blame = _judge(record, died)
        self._write(replace(record, open=""))
        return blame

    def trying(self, version: str) -> str:
        """Note that a death from now on is this version's; returns whose it was until now."""
        before = self._record.open
        if before != version:
            self._write(replace(self._record, open=version))
        return before

    def healthy(self) -> None:
        """Forget all deaths: what is served lives."""
        if self._record != _Record():
            self._write(_Record())

    def close(self) -> None:
        """Note a clean stop."""
        self.trying("")

    def _read(self) -> _Record:
        try:
            data: dict[str, Any] = json.loads(self._path.read_bytes())
            crashes, kills = (
                {str(key): int(number) for key, number in data[kind].items()}
                for kind in ("crashes", "kills")
            )
            suspect, excused = str(data["suspect"]), bool(data["excused"])
            return _Record(str(data["open"]), crashes, kills, suspect, excused)
        except FileNotFoundError:
            return _Record()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is passed over: %s", self._path, error)
            return _Record()

    def _write(self, record: _Record) -> None:
        self._record = record
        if not self._max_crashes:
            return
        try:
            write_atomically(self._path, json.dumps(vars(record)).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)


def _judge(record: _Record, died: str) -> tuple[_Record, Blame]:
    """Blame the version that died too often, unless another one was blamed just before."""
    if record.suspect:
        return _Record(excused=True), Blame(allow=record.suspect)
    return _Record(suspect=died), Blame(refuse=died)
