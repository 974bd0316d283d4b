import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.sample_schema import MIGRATIONS
from edge_client.sequences import (
    MAX_SOURCES,
    MAX_STRETCHES,
    SeenSequences,
    SourceBook,
    read_sources,
)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in MIGRATIONS:
        for statement in migration:
            connection.execute(statement)
    yield connection
    connection.close()


def note_each(connection: sqlite3.Connection, source: str, sequences: list[int]) -> list[bool]:
    """Note numbers, each in a book of its own, as after a restart."""
    answers = []
    for sequence in sequences:
        book = SourceBook(connection)
        answers.append(book.note(source, sequence))
        book.save()
    return answers


@given(st.lists(st.integers(0, 30) | st.integers(0, 10**6), min_size=1, max_size=80))
def test_a_number_is_new_once_in_whatever_order_they_come(sequences: list[int]) -> None:
    known = SeenSequences()
    came: set[int] = set()
    for sequence in sequences:
        assert known.note(sequence) == (sequence not in came)
        came.add(sequence)
    assert known.received == len(came)
    assert known.duplicates == len(sequences) - len(came)
    assert (known.first, known.newest) == (min(came), max(came))
    assert known.missing == max(came) - min(came) + 1 - len(came)


def test_a_backlog_that_comes_after_what_is_newer_is_new(connection: sqlite3.Connection) -> None:
    backlog = [0, *range(20_000, 20_100), *range(1, 100)]
    assert all(note_each(connection, "a", backlog))
    assert not any(note_each(connection, "a", backlog))


def test_memory_is_bounded_and_what_is_forgotten_counts_as_come() -> None:
    known = SeenSequences()
    for number in range(MAX_STRETCHES + 2):
        assert known.note(10 * number)
    assert len(known.starts) == len(known.ends) == MAX_STRETCHES
    assert len(known.pack()) == 16 * MAX_STRETCHES
    assert not known.note(5)  # within the lowest gap, which closed
    assert not known.note(15)
    assert known.note(25)
    assert not known.note(10 * MAX_STRETCHES)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20), st.integers(0, 20))
def test_a_book_that_is_read_again_goes_on_as_if_it_had_not_been(
    sequences: list[int], restart: int
) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in MIGRATIONS:
        for statement in migration:
            connection.execute(statement)
    whole = SourceBook(connection)
    expected = [whole.note("whole", sequence) for sequence in sequences]
    found = []
    for part in (sequences[:restart], sequences[restart:]):
        book = SourceBook(connection)
        found += [book.note("parts", sequence) for sequence in part]
        book.save()
    assert found == expected
    connection.close()


def test_sources_have_numbers_of_their_own(connection: sqlite3.Connection) -> None:
    assert note_each(connection, "a", [5, 6, 5]) == [True, True, False]
    assert note_each(connection, "b", [5, 7]) == [True, True]
    found = read_sources(connection)
    assert [(name, known.duplicates, known.missing) for name, known in found.items()] == [
        ("a", 1, 0),
        ("b", 0, 1),
    ]


def test_a_leap_to_the_largest_number_takes_no_memory(connection: sqlite3.Connection) -> None:
    assert note_each(connection, "a", [0, 2**63 - 1, 2**63 - 1, 0]) == [True, True, False, False]
    [known] = read_sources(connection).values()
    assert len(known.pack()) == 32


def test_the_sources_heard_last_are_remembered(connection: sqlite3.Connection) -> None:
    for number in range(MAX_SOURCES):
        note_each(connection, f"source-{number}", [1])
    note_each(connection, "source-0", [2])
    note_each(connection, "one-more", [1])
    names = set(read_sources(connection))
    assert len(names) == MAX_SOURCES
    assert {"source-0", "one-more"} <= names
    assert "source-1" not in names
