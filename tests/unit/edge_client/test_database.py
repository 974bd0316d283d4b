import os
import sqlite3
import stat
from pathlib import Path

import pytest

from edge_client.database import open_database, open_read_only, transaction
from fedge.errors import StoreError

FIRST = ("CREATE TABLE numbers (n INTEGER)",)
SECOND = ("ALTER TABLE numbers ADD COLUMN name TEXT", "INSERT INTO numbers VALUES (2, 'two')")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "data.db"


def test_a_database_is_durable_and_its_owners_alone(path: Path) -> None:
    connection = open_database(path, [FIRST])
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.execute("INSERT INTO numbers VALUES (1)")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {0o600}
    connection.close()


def test_migrations_run_once_and_in_order(path: Path) -> None:
    open_database(path, [FIRST]).close()
    for _ in range(2):
        connection = open_database(path, [FIRST, SECOND])
        assert connection.execute("SELECT * FROM numbers").fetchall() == [(2, "two")]
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(2,)]
        connection.close()


def test_a_migration_that_fails_leaves_the_database_as_it_was(path: Path) -> None:
    open_database(path, [FIRST]).close()
    with pytest.raises(StoreError, match="syntax error"):
        open_database(path, [FIRST, (SECOND[0], "NONSENSE")])
    connection = open_database(path, [FIRST])
    with pytest.raises(sqlite3.OperationalError, match="no such column: name"):
        connection.execute("SELECT name FROM numbers")
    connection.close()


def test_a_database_of_a_newer_release_is_refused(path: Path) -> None:
    open_database(path, [FIRST, SECOND]).close()
    with pytest.raises(StoreError, match="schema version 2, this release knows 1"):
        open_database(path, [FIRST])
    with pytest.raises(StoreError, match="schema version 2, expected 1"):
        open_read_only(path, 1)


def test_a_reader_cannot_write(path: Path) -> None:
    writer = open_database(path, [FIRST])
    reader = open_read_only(path, 1)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO numbers VALUES (1)")
    reader.close()
    writer.close()


def test_a_reader_of_a_missing_file_makes_none(path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist yet"):
        open_read_only(path, 1)
    assert not path.exists()


def test_a_file_that_is_no_database_is_named_and_kept(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match=f"{path}: file is not a database"):
        open_database(path, [FIRST])
    with pytest.raises(StoreError, match=f"{path}: file is not a database"):
        open_read_only(path, 1)
    assert path.read_bytes().startswith(b"not a database")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        open_database(tmp_path / "file" / "data.db", [FIRST])


def test_a_transaction_commits_everything_or_nothing(path: Path) -> None:
    connection = open_database(path, [FIRST])

    def fail_midway() -> None:
        with transaction(connection):
            connection.execute("INSERT INTO numbers VALUES (1)")
            connection.execute("NONSENSE")

    with pytest.raises(sqlite3.OperationalError):
        fail_midway()
    assert connection.execute("SELECT * FROM numbers").fetchall() == []
    connection.close()


def test_opening_leaves_no_descriptor_behind_when_it_fails(path: Path) -> None:
    open_database(path, [FIRST, SECOND]).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(StoreError):
            open_database(path, [FIRST])
        with pytest.raises(StoreError):
            open_read_only(path, 1)
    assert len(os.listdir("/proc/self/fd")) == before
