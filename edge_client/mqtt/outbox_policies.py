"""What happens to predictions when the outbox is full, by name."""

from __future__ import annotations

import sqlite3
from typing import Protocol

from fedge.naming import Registry


class FullPolicy(Protocol):
    """Decides within one transaction; safe to make anew each time."""

    def make_room(self, connection: sqlite3.Connection, excess_bytes: int) -> tuple[bool, int]:
        """Return whether the new prediction is kept, and how many old ones were removed.

        Args:
            connection: of the outbox.
            excess_bytes: what must go before the new one fits; above 0.
        """


FULL_POLICIES: Registry[type[FullPolicy]] = Registry("policy of a full outbox")


@FULL_POLICIES.register("oldest-first")
class OldestFirst:
    """Removes the oldest predictions."""

    def make_room(self, connection: sqlite3.Connection, excess_bytes: int) -> tuple[bool, int]:
        """Remove from the front until enough is gone."""
        removed = 0
        while excess_bytes > 0:
            row = connection.execute(
                "SELECT sequence, size_bytes FROM outbox ORDER BY sequence LIMIT 1"
            ).fetchone()
            if row is None:
                return False, removed
            connection.execute("DELETE FROM outbox WHERE sequence = ?", row[:1])
            excess_bytes -= row[1]
            removed += 1
        return True, removed


@FULL_POLICIES.register("refuse")
class Refuse:
    """Keeps what waits and refuses the new prediction."""

    def make_room(self, connection: sqlite3.Connection, excess_bytes: int) -> tuple[bool, int]:
        """Leave everything as it is."""
        del connection, excess_bytes
        return False, 0
