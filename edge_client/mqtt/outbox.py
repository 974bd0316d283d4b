"""Predictions that wait for the broker, in one SQLite file; what is in it survives a power cut.

Its numbers grow for ever: a new file begins at the time in milliseconds, so that a device whose
state was lost does not send numbers that its consumer has already seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_client.database import mapped_errors, open_database, transaction
from edge_client.mqtt.outbox_policies import FULL_POLICIES
from edge_client.mqtt.settings import OutboxConfig
from edge_client.sequences import SourceBook, read_sources
from fedge.closing import Closing

ROW_OVERHEAD_BYTES = 64  # what SQLite and the other columns take, roughly

MIGRATIONS = (
    (
        """CREATE TABLE outbox (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            body BLOB NOT NULL,
            size_bytes INTEGER NOT NULL
        )""",
        """CREATE TABLE totals (
            waiting INTEGER NOT NULL, size_bytes INTEGER NOT NULL, kept INTEGER NOT NULL,
            dropped INTEGER NOT NULL, refused INTEGER NOT NULL
        )""",
        "INSERT INTO totals VALUES (0, 0, 0, 0, 0)",
        """CREATE TRIGGER prediction_kept AFTER INSERT ON outbox
            BEGIN UPDATE totals SET waiting = waiting + 1, kept = kept + 1,
                size_bytes = size_bytes + NEW.size_bytes; END""",
        """CREATE TRIGGER prediction_gone AFTER DELETE ON outbox
            BEGIN UPDATE totals SET waiting = waiting - 1,
                size_bytes = size_bytes - OLD.size_bytes; END""",
        """CREATE TABLE sources (
            source TEXT PRIMARY KEY,
            first INTEGER NOT NULL, newest INTEGER NOT NULL, seen BLOB NOT NULL,
            received INTEGER NOT NULL, duplicates INTEGER NOT NULL,
            heard INTEGER NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX sources_by_last_word ON sources (heard)",
    ),
)


@dataclass(frozen=True)
class Answer:
    """What came of one sample.

    Attributes:
        source, sequence: of the sample.
        body: the prediction; None where there is none, such as without a model.
    """

    source: str
    sequence: int
    body: bytes | None


@dataclass(frozen=True)
class OutboxRow:
    """One prediction that waits."""

    sequence: int
    body: bytes


class Outbox(Closing):
    """The predictions of one device, in order; safe across threads.

    Args:
        path: the file; made if it is missing.
        config: its bound and what happens at it.
        clock: seconds since 1970, for the first number of a new file.

    Raises:
        StoreError: the file cannot be used; any method may raise it too.
    """

    def __init__(
        self, path: Path, config: OutboxConfig, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._max_bytes = config.max_bytes
        self._policy = FULL_POLICIES[config.when_full]()
        self._lock = threading.Lock()
        self._connection = open_database(path, MIGRATIONS)
        with self._lock, mapped_errors(path), transaction(self._connection):
            self._connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) SELECT 'outbox', ? "
                "WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'outbox')",
                (int(clock() * 1000),),
            )
            self._fit(0)

    def put_many(self, answers: Sequence[Answer]) -> int:
        """Keep answers in one step; returns how many samples had not been answered before.

        A sample is answered once, even if it is delivered again after its prediction is gone.
        """
        new = 0
        with self._lock, mapped_errors(self._path), transaction(self._connection):
            book = SourceBook(self._connection)
            for answer in answers:
                if not book.note(answer.source, answer.sequence):
                    continue
                new += 1
                if answer.body is not None:
                    self._put(answer.body)
            book.save()
        return new

    def head(self, after: int, limit: int) -> list[OutboxRow]:
        """Return the oldest predictions whose number is above ``after``."""
        return self._rows(
            "SELECT sequence, body FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (after, limit),
        )

    def read(self, sequence: int) -> OutboxRow | None:
        """Return one prediction, if it still waits."""
        rows = self._rows("SELECT sequence, body FROM outbox WHERE sequence = ?", (sequence,))
        return rows[0] if rows else None

    def delete(self, sequences: Collection[int]) -> int:
        """Remove predictions that were acknowledged; returns how many of them there were."""
        with self._lock, mapped_errors(self._path), transaction(self._connection):
            return self._connection.executemany(
                "DELETE FROM outbox WHERE sequence = ?", ((number,) for number in sequences)
            ).rowcount

    def snapshot(self) -> dict[str, float]:
        """Return what waits, what was lost at the bound, and what sources sent."""
        with self._lock, mapped_errors(self._path):
            waiting, size_bytes, kept, dropped, refused = self._connection.execute(
                "SELECT waiting, size_bytes, kept, dropped, refused FROM totals"
            ).fetchone()
            sources = read_sources(self._connection).values()
        return {
            "outbox_waiting": float(waiting),
            "outbox_bytes": float(size_bytes),
            "outbox_max_bytes": float(self._max_bytes),
            "outbox_kept_total": float(kept),
            "outbox_dropped_total": float(dropped),
            "outbox_refused_total": float(refused),
            "sources": float(len(sources)),
            "sequence_gap": float(sum(source.missing for source in sources)),
            "duplicates_total": float(sum(source.duplicates for source in sources)),
        }

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _put(self, body: bytes) -> None:
        size_bytes = ROW_OVERHEAD_BYTES + len(body)
        if size_bytes > self._max_bytes or not self._fit(size_bytes):
            self._connection.execute("UPDATE totals SET refused = refused + 1")
            return
        self._connection.execute(
            "INSERT INTO outbox (body, size_bytes) VALUES (?, ?)", (body, size_bytes)
        )

    def _fit(self, size_bytes: int) -> bool:
        """Make room for so many bytes; tell whether there is."""
        (taken,) = self._connection.execute("SELECT size_bytes FROM totals").fetchone()
        excess_bytes = taken + size_bytes - self._max_bytes
        if excess_bytes <= 0:
            return True
        kept, removed = self._policy.make_room(self._connection, excess_bytes)
        self._connection.execute("UPDATE totals SET dropped = dropped + ?", (removed,))
        return kept

    def _rows(self, query: str, values: tuple[int, ...]) -> list[OutboxRow]:
        with self._lock, mapped_errors(self._path):
            found: list[tuple[int, bytes]] = self._connection.execute(query, values).fetchall()
        return [OutboxRow(*row) for row in found]
