"""Which numbers of a numbered source have come before: bounded memory, durable, in any order.

A source numbers what it sends. What is remembered of it is the stretches of numbers that came. So a
sample that is delivered again is known even after the sample itself made room, and one that is
delivered late is not taken for another, however much later: a broker whose client was away has been
seen to deliver new messages before thousands of older ones.
"""

from __future__ import annotations

import sqlite3
import struct
from bisect import bisect_right
from dataclasses import dataclass, field

MAX_STRETCHES = 1024
MAX_SOURCES = 1024
MAX_SEQUENCE = 2**63 - 1  # what SQLite can hold


@dataclass
class SeenSequences:
    """The numbers of one source.

    Attributes:
        starts, ends: first and last number of each stretch that came, in order. Beyond
            `MAX_STRETCHES` the gap between the two lowest closes, and counts as numbers that came.
        first: the smallest number that came.
        received: numbers that came, each counted once.
        duplicates: how often one came again.
    """

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    first: int = 0
    received: int = 0
    duplicates: int = 0

    def note(self, sequence: int) -> bool:
        """Note a number; returns whether it is new."""
        after = bisect_right(self.starts, sequence)  # of the first stretch beyond it
        if after and sequence <= self.ends[after - 1]:
            self.duplicates += 1
            return False
        joins_left = after > 0 and self.ends[after - 1] == sequence - 1
        joins_right = after < len(self.starts) and self.starts[after] == sequence + 1
        if joins_left and joins_right:
            self.ends[after - 1] = self.ends.pop(after)
            del self.starts[after]
        elif joins_left:
            self.ends[after - 1] = sequence
        elif joins_right:
            self.starts[after] = sequence
        else:
            self.starts.insert(after, sequence)
            self.ends.insert(after, sequence)
            self._close_lowest_gap()
        self.first = sequence if self.received == 0 else min(self.first, sequence)
        self.received += 1
        return True

    @property
    def newest(self) -> int:
        """The largest number that came."""
        return self.ends[-1]

    @property
    def missing(self) -> int:
        """Numbers between the first and the newest that have not come."""
        return self.newest - self.first + 1 - self.received

    def pack(self) -> bytes:
        """Return the stretches for a database."""
        return struct.pack(f"<{2 * len(self.starts)}q", *self.starts, *self.ends)

    @classmethod
    def unpack(cls, content: bytes, first: int, received: int, duplicates: int) -> SeenSequences:
        """Return what `pack` was called on."""
        values = list(struct.unpack(f"<{len(content) // 8}q", content))
        middle = len(values) // 2
        return cls(values[:middle], values[middle:], first, received, duplicates)

    def _close_lowest_gap(self) -> None:
        if len(self.starts) > MAX_STRETCHES:
            del self.starts[1]
            del self.ends[0]


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
            known = SeenSequences()
            self._grown = True
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
                    known.pack(),
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
            "SELECT seen, first, received, duplicates FROM sources WHERE source = ?",
            (source,),
        ).fetchone()
        return None if row is None else SeenSequences.unpack(*row)


def read_sources(connection: sqlite3.Connection) -> dict[str, SeenSequences]:
    """Return what is remembered of every source, by name."""
    names = [row[0] for row in connection.execute("SELECT source FROM sources ORDER BY source")]
    book = SourceBook(connection)
    return {name: known for name in names if (known := book._read(name)) is not None}
