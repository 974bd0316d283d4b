"""Labels that came before their sample: kept until it comes, bounded in bytes and age."""

from __future__ import annotations

import sqlite3

from edge_client.array_columns import ArrayColumns

SHARE = 1 / 16  # of store.max_bytes, beside it
ROW_OVERHEAD_BYTES = 128


class WaitingLabels:
    """A table of the sample database; every call is within a transaction of the caller."""

    def __init__(self, connection: sqlite3.Connection, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = int(max_bytes * SHARE)

    def put(self, sample_id: str, label: ArrayColumns, now: float) -> None:
        """Keep a label, the last one for its id; the oldest make room, or it does itself."""
        size_bytes = ROW_OVERHEAD_BYTES + len(sample_id.encode()) + label.size_bytes
        self.take(sample_id)
        self._connection.execute(
            "INSERT INTO waiting_labels (id, added_at, size_bytes, target_dtype, target_shape, "
            "target, target_crc) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (sample_id, now, size_bytes, *label.values),
        )
        while self._size_bytes() > self._max_bytes:
            self._connection.execute(
                "DELETE FROM waiting_labels WHERE sequence = "
                "(SELECT min(sequence) FROM waiting_labels)"
            )

    def take(self, sample_id: str) -> ArrayColumns | None:
        """Return the label of this id and keep it no longer."""
        row = self._connection.execute(
            "SELECT target_dtype, target_shape, target, target_crc FROM waiting_labels "
            "WHERE id = ?",
            (sample_id,),
        ).fetchone()
        if row is None:
            return None
        self._connection.execute("DELETE FROM waiting_labels WHERE id = ?", (sample_id,))
        return ArrayColumns(row)

    def remove_before(self, oldest: float) -> None:
        """Remove what came before this time."""
        self._connection.execute("DELETE FROM waiting_labels WHERE added_at < ?", (oldest,))

    def _size_bytes(self) -> int:
        return int(self._connection.execute("SELECT waiting_bytes FROM totals").fetchone()[0])
