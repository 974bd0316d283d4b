"""The privacy ledger of a real device, in SQLite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_client.database import mapped_errors, open_database
from edge_client.ledger import Account
from fedge.errors import PrivacyError, StoreError
from fedge.messages import RoundKey
from fedge.privacy.accounting import Spend

_MIGRATIONS = (
    (
        """CREATE TABLE entries (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            key TEXT NOT NULL,
            partition TEXT NOT NULL,
            noise_multiplier REAL NOT NULL,
            sampling_rate REAL NOT NULL,
            num_steps INTEGER NOT NULL,
            epsilon REAL NOT NULL,
            delta REAL NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('reserved', 'settled')),
            reserved_at REAL NOT NULL DEFAULT (julianday('now'))
        )""",
        "CREATE TABLE runs (run_name TEXT PRIMARY KEY, noise_multiplier REAL NOT NULL)",
    ),
)


class SqliteLedger:
    """A ledger that a kill or a power cut at any instant leaves whole.

    Each statement is its own transaction, synced to disk before it returns.

    Raises:
        PrivacyError: the file is damaged or cannot be written, here and from every method; then
            this device must not train.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._mapped():
            self._connection = open_database(path, _MIGRATIONS)
        found = self._execute("PRAGMA quick_check")
        if found != [("ok",)]:
            raise PrivacyError(self._advise(f"{path}: {found[0][0]}"))

    def spends(self, partition: str) -> tuple[Spend, ...]:
        """Return everything reserved or settled, oldest first."""
        rows = self._execute(
            "SELECT noise_multiplier, sampling_rate, num_steps FROM entries "
            "WHERE partition = ? ORDER BY number",
            (partition,),
        )
        return tuple(Spend(*row) for row in rows)

    def reserve(
        self, key: RoundKey, spend: Spend, *, partition: str, epsilon: float, delta: float
    ) -> int:
        """Write down a spend before it happens; return the entry's number."""
        costs = (spend.noise_multiplier, spend.sampling_rate, spend.num_steps, epsilon, delta)
        rows = self._execute(
            "INSERT INTO entries (key, partition, noise_multiplier, sampling_rate, num_steps, "
            "epsilon, delta, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'reserved') RETURNING number",
            (str(key), partition, *costs),
        )
        return int(rows[0][0])

    def settle(self, number: int) -> None:
        """Note that the reserved work was done."""
        self._execute("UPDATE entries SET state = 'settled' WHERE number = ?", (number,))

    def noise_multiplier(self, run_name: str) -> float | None:
        """Return what was fixed for a run, or None in its first round."""
        rows = self._execute("SELECT noise_multiplier FROM runs WHERE run_name = ?", (run_name,))
        return float(rows[0][0]) if rows else None

    def fix_noise_multiplier(self, run_name: str, noise_multiplier: float) -> None:
        """Keep the noise multiplier of a run."""
        self._execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (run_name, noise_multiplier))

    def account(self) -> Account | None:
        """Return what is spent in all; None before the first reservation."""
        rows = self._execute("SELECT epsilon, delta FROM entries ORDER BY epsilon DESC LIMIT 1")
        return Account(*rows[0]) if rows else None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._mapped(), mapped_errors(self._path):
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise PrivacyError(self._advise(str(error))) from error

    @staticmethod
    def _advise(reason: str) -> str:
        return (
            f"the privacy ledger cannot be used, so this device does not train ({reason}). Do not "
            "delete it: what was spent would be forgotten"
        )
