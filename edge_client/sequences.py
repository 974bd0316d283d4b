"""Which numbers of a numbered source have come before: constant memory, durable, in any order.

A source numbers what it sends. What is remembered of it is the newest number and, of the numbers
just below, which of them came. So a sample that is delivered again is known even after the sample
itself made room. A number further back than the window counts as one that came.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

WINDOW = 4096
MAX_SOURCES = 1024
MAX_SEQUENCE = 2**63 - 1  # what SQLite can hold
_WINDOW_MASK = (1 << WINDOW) - 1


@dataclass
class SeenSequences:
    """The numbers of one source.

    Attributes:
        first: the number that came first.
        newest: the largest.
        seen: bit i is set if ``newest - i`` came, i below `WINDOW`.
        received: numbers that came, each counted once.
        duplicates: how often one came again, or too late to tell.
    """

    first: int
    newest: int
    seen: int = 1
    received: int = 1
    duplicates: int = 0

    def note(self, sequence: int) -> bool:
        """Note a number; returns whether it is new."""
        behind = self.newest - sequence
        if behind >= WINDOW or (behind >= 0 and self.seen >> behind & 1):
            self.duplicates += 1
            return False
        if behind >= 0:
            self.seen |= 1 << behind
        else:
            # Shifting a window further than its own length would only take memory.
            self.seen = ((self.seen << min(-behind, WINDOW)) | 1) & _WINDOW_MASK
            self.newest = sequence
        self.first = min(self.first, sequence)
        self.received += 1
        return True

    @property
    def missing(self) -> int:
        """Numbers between the first and the newest that have not come."""
        return self.newest - self.first + 1 - self.received


class SourceBook:
    """The sources that samples came from, read and written within one transaction.

    The `MAX_SOURCES` heard last are remembered.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._open: dict[str, SeenSequences] = {}
        self._grown = False

    def note(self, source: str, sequence: int) -> bool:
        """Note a number of a source; returns whether it is new."""
        known = self._open.get(source) or self._read(source)
        if known is None:
            self._open[source] = SeenSequences(sequence, sequence)
            self._grown = True
            return True
        self._open[source] = known
        return known.note(sequence)

    def save(self) -> None:
        """Write what was noted; the caller commits."""
        if not self._open:
            return
        (heard,) = self._connection.execute("SELECT ifnull(max(heard), 0) FROM sources").fetchone()
        self._connection.executemany(
            "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    source,
                    known.first,
                    known.newest,
                    known.seen.to_bytes(WINDOW // 8, "little").rstrip(b"\0"),
                    known.received,
                    known.duplicates,
                    heard + 1,
                )
                for source, known in self._open.items()
            ),
        )
        if self._grown:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._connection.execute(
            "DELETE FROM sources WHERE source IN "
            "(SELECT source FROM sources ORDER BY heard DESC, source LIMIT -1 OFFSET ?)",
            (MAX_SOURCES,),
        )

    def _read(self, source: str) -> SeenSequences | None:
        row = self._connection.execute(
            "SELECT first, newest, seen, received, duplicates FROM sources WHERE source = ?",
            (source,),
        ).fetchone()
        if row is None:
            return None
        first, newest, seen, received, duplicates = row
        return SeenSequences(first, newest, int.from_bytes(seen, "little"), received, duplicates)


def read_sources(connection: sqlite3.Connection) -> dict[str, SeenSequences]:
    """Return what is remembered of every source, by name."""
    names = [row[0] for row in connection.execute("SELECT source FROM sources ORDER BY source")]
    book = SourceBook(connection)
    return {name: known for name in names if (known := book._read(name)) is not None}
