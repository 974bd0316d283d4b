"""Predictions of a fleet in one SQLite file, each once."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.closing import Closing
from fedge.errors import StoreError

BUSY_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Prediction:
    """What a device answered.

    Attributes:
        device: as the topic says, on which the broker lets it alone write.
        sequence: the device's number of it; the two together are the key to drop duplicates by.
        body: the whole message.
    """

    device: str
    sequence: int
    body: dict[str, Any]


class PredictionFile(Closing):
    """Keeps predictions durably; one that comes again is dropped.

    Raises:
        StoreError: the file cannot be used; any method may raise it too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS predictions (device TEXT NOT NULL, "
                "sequence INTEGER NOT NULL, body TEXT NOT NULL, "
                "PRIMARY KEY (device, sequence)) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from error

    def keep(self, predictions: Sequence[Prediction]) -> int:
        """Keep predictions in one step; return how many of them are new."""
        rows = [(found.device, found.sequence, json.dumps(found.body)) for found in predictions]
        try:
            with self._lock:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    new = self._connection.executemany(
                        "INSERT INTO predictions VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows
                    ).rowcount
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error
        return new

    def count(self) -> int:
        """Return how many there are."""
        with self._lock:
            row = self._connection.execute("SELECT count(*) FROM predictions").fetchone()
        return int(row[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
