"""What simulated clients carry from round to round, in one bounded file on disk.

Ledgers are never dropped: a client that forgot what it spent would spend it again. What else a
client remembers (error feedback, SCAFFOLD's control, personal layers) is dropped when the file
grows too large, that of the clients who were asked longest ago first; they begin anew.
`StateStore.trim` does so; a cohort is trimmed before its round: what is dropped then depends on no
worker and on no kill.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedge.errors import StoreError

log = logging.getLogger(__name__)

_CLIENTS_PER_QUERY = 500
_KEPT_SHARE = 0.9
"""Share of the limit that is left after dropping, so that not every round drops."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS states (
    client INTEGER NOT NULL, round INTEGER NOT NULL, ledger TEXT NOT NULL, memory BLOB,
    PRIMARY KEY (client, round)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class StoredState:
    """One client's state after a round.

    Attributes:
        ledger: JSON of its privacy ledger; empty for none.
        memory: what else it remembers, as bytes; empty for nothing.
    """

    ledger: str = ""
    memory: bytes = b""


class StateStore:
    """States by client; the two newest of each are kept, since the open round may be done again.

    The file is made with the first state: a run whose clients remember nothing has none.

    Args:
        path: of the file.
        last_committed: states of later rounds are forgotten.
        limit_bytes: what all memories together may take after `trim`.

    Raises:
        StoreError: the file cannot be read.
    """

    def __init__(self, path: Path, *, last_committed: int, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._database: sqlite3.Connection | None = None
        self._memory_bytes = 0
        self._said_so = False
        if path.exists():
            with self._opened() as database:
                database.execute("DELETE FROM states WHERE round > ?", (last_committed,))
                self._memory_bytes = _total(database)

    def get(self, clients: Iterable[int]) -> dict[int, StoredState]:
        """Return the newest state of each of these clients that has one."""
        if self._database is None:
            return {}
        found: dict[int, StoredState] = {}
        with self._opened() as database:
            for chunk in _chunks(list(clients)):
                marks = ",".join("?" * len(chunk))
                rows = database.execute(
                    f"SELECT client, ledger, memory FROM states WHERE client IN ({marks}) "
                    "ORDER BY client, round",
                    chunk,
                )
                found.update(
                    {client: StoredState(ledger, memory or b"") for client, ledger, memory in rows}
                )
        return found

    def put(self, round: int, states: Mapping[int, StoredState]) -> None:
        """Keep the states of a round as one step.

        Raises:
            StoreError: the disk does not take them.
        """
        if not states:
            return
        rows = [(c, round, s.ledger, s.memory or None) for c, s in sorted(states.items())]
        with self._opened() as database:
            database.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", rows)
            database.executemany(
                "DELETE FROM states WHERE client = ?1 AND round < (SELECT MAX(round) FROM states "
                "WHERE client = ?1 AND round < ?2)",
                [(client, round) for client in states],
            )
            self._memory_bytes += sum(len(state.memory) for state in states.values())

    def trim(self) -> None:
        """Forget the oldest memories where all together take more than they may.

        Raises:
            StoreError: the file cannot be written.
        """
        if self._memory_bytes <= self._limit_bytes:
            return
        with self._opened() as database:
            self._memory_bytes = _total(database)
            if self._memory_bytes > self._limit_bytes:
                self._drop(database)

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _drop(self, database: sqlite3.Connection) -> None:
        """Forget memories, oldest first, until there is room again."""
        surplus = self._memory_bytes - int(_KEPT_SHARE * self._limit_bytes)
        oldest = database.execute(
            "SELECT client, round, LENGTH(memory) FROM states WHERE memory IS NOT NULL "
            "ORDER BY round, client"
        )
        dropped = []
        for client, round, size in oldest:
            dropped.append((client, round))
            surplus -= size
            if surplus <= 0:
                break
        database.executemany(
            "UPDATE states SET memory = NULL WHERE client = ? AND round = ?", dropped
        )
        self._memory_bytes = _total(database)
        if not self._said_so:
            self._said_so = True
            log.warning(
                "what clients remember takes more than engine.state_limit_mib: those asked longest "
                "ago begin anew (their privacy ledgers are kept); raise it to keep all"
            )

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction on the file, which is made where it is missing."""
        try:
            if self._database is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(self._path)
                self._database.execute("PRAGMA journal_mode = WAL")
                # A kill loses nothing; what a power cut takes is done again from the checkpoint.
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.execute(_SCHEMA)
            with self._database:
                yield self._database
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the clients' states in {self._path} cannot be used: {error}; free the disk, or "
                "choose another server.run_dir"
            ) from error


def _total(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT TOTAL(LENGTH(memory)) FROM states").fetchone()[0])


def _chunks(clients: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(clients), _CLIENTS_PER_QUERY):
        yield clients[start : start + _CLIENTS_PER_QUERY]
