"""SQLite on the device: opened durably, migrated, and its errors mapped once.

One process writes (the daemon); others open the file read-only and may read at any time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedge.errors import StoreError

BUSY_TIMEOUT_S = 10.0
Migration = Sequence[str]


@contextmanager
def mapped_errors(path: Path) -> Iterator[None]:
    """Raise what SQLite raises as StoreError that names the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path}: {error}; check free space and permissions, and restore or remove the file "
            "if it is damaged"
        ) from error


def open_database(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open a database for writing; make it, its folder and its schema where they are missing.

    What is committed survives a kill and a power cut. Only its owner can read the file.

    Args:
        path: the file.
        migrations: statements that lead from each schema version to the next; the first makes
            version 1.

    Raises:
        StoreError: it cannot be opened, or a newer release of fedge made it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}") from error
    with mapped_errors(path):
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            _migrate(connection, path, migrations)
        except (sqlite3.Error, StoreError):
            connection.close()
            raise
        return connection


def open_read_only(path: Path, version: int) -> sqlite3.Connection:
    """Open a database that another process writes.

    Raises:
        StoreError: it is not there (yet), cannot be opened, or has another schema version.
    """
    if not path.is_file():
        raise StoreError(f"{path} does not exist yet: the daemon makes it when it starts")
    with mapped_errors(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            found = _version(connection)
        except sqlite3.Error:
            connection.close()
            raise
    if found != version:
        connection.close()
        raise StoreError(
            f"{path} has schema version {found}, expected {version}: run one release of fedge"
        )
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit everything inside as one step, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    with transaction(connection):
        connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        found = _version(connection)
        if found > len(migrations):
            raise StoreError(
                f"{path} has schema version {found}, this release knows {len(migrations)}: use "
                "the newer release of fedge that made it"
            )
        for migration in migrations[found:]:
            for statement in migration:
                connection.execute(statement)
        connection.execute("DELETE FROM schema_version")
        connection.execute("INSERT INTO schema_version VALUES (?)", (len(migrations),))


def _version(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
    return int(row[0] or 0)
