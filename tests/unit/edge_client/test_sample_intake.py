import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from fedge.errors import InvalidSample, StoreError

ONES = np.ones(4, np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.db"


@pytest.fixture
def samples(path: Path) -> Iterator[SampleDatabase]:
    with SampleDatabase(path, StoreConfig(holdout_fraction=0.0)) as database:
        yield database


def stored_ids(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM samples ORDER BY sequence")]


VERSION_1 = Path(__file__).parent / "data" / "samples-version-1.db"
"""Made by release code of schema version 1: id-0 to id-5, of which 0, 2, 4 and 1 have labels."""


def test_a_database_of_version_1_is_taken_over_with_everything_in_it(path: Path) -> None:
    path.write_bytes(VERSION_1.read_bytes())
    config = StoreConfig(max_age_s=3e9, holdout_fraction=0.0, retention="reservoir")
    with SampleDatabase(path, config) as samples:
        found = samples.labelled("train")
        assert found.inputs[:, 0].tolist() == [0, 1, 2, 4]
        assert found.targets.tolist() == [0, 7, 2, 4]
        figures = samples.figures()
        assert (figures.labelled, figures.unlabelled, figures.offered) == (4, 2, 4)
        assert figures.size_bytes == 6 * (128 + 4 + 16) + 4 * 8
        assert not samples.add("id-3", ONES, 3)
        assert samples.add("id-6", ONES, source="s", sequence=0)
    with sqlite3.connect(path) as connection:
        draws = [row[0] for row in connection.execute("SELECT draw FROM samples")]
        [labelled_bytes] = connection.execute("SELECT labelled_bytes FROM totals").fetchone()
    assert len(set(draws)) == 7
    assert all(0 <= draw < 1 for draw in draws)
    assert labelled_bytes == 5 * (128 + 4 + 16 + 8)


def test_a_number_that_came_before_is_dropped_and_counted(path: Path) -> None:
    config = StoreConfig(max_bytes=4096, holdout_fraction=0.0)
    with SampleDatabase(path, config) as samples:
        for sequence in range(60):
            assert samples.add(f"s-{sequence}", ONES, source="topic", sequence=sequence)
        assert "s-0" not in stored_ids(path)
    with SampleDatabase(path, config) as samples:
        before = stored_ids(path)
        assert not samples.add("s-0", ONES, source="topic", sequence=0)
        assert not samples.add("another id", ONES, source="topic", sequence=59)
        assert samples.add("s-70", ONES, source="topic", sequence=70)
        assert samples.add("s-61", ONES, source="topic", sequence=61)
        assert samples.add("s-0 of another", ONES, source="other topic", sequence=0)
        assert not samples.add("s-70", ONES)
        figures = samples.figures()
    assert "another id" not in stored_ids(path)
    assert before[-1] == "s-59"
    assert figures.duplicates == 3
    known = figures.sources["topic"]
    assert (known.received, known.duplicates, known.missing) == (62, 2, 9)


@pytest.mark.parametrize(("source", "sequence"), [("", 1), ("x" * 257, 1), ("a", -1), ("a", 2**63)])
def test_numbers_that_cannot_be_kept_are_refused(
    samples: SampleDatabase, source: str, sequence: int
) -> None:
    with pytest.raises(InvalidSample):
        samples.add("a", ONES, source=source, sequence=sequence)
    assert samples.counts() == (0, 0)


def test_many_are_added_in_one_step_which_says_of_each_whether_it_is_new(
    path: Path, samples: SampleDatabase
) -> None:
    many = [samples.prepare(f"{n % 3}", n * ONES, n, source="s", sequence=n % 4) for n in range(6)]
    commits = count_commits(samples)
    assert samples.add_many(many) == [True, True, True, False, False, False]
    assert len(commits) == 1
    assert stored_ids(path) == ["0", "1", "2"]
    assert samples.labelled("train").targets.tolist() == [3, 1, 2]  # 0's number 3 was new


def count_commits(samples: SampleDatabase) -> list[str]:
    commits: list[str] = []

    def note(statement: str) -> None:
        if statement == "COMMIT":
            commits.append(statement)

    samples._connection.set_trace_callback(note)
    return commits


def test_threads_that_add_at_once_share_commits(path: Path, samples: SampleDatabase) -> None:
    commits = count_commits(samples)
    with samples._lock, ThreadPoolExecutor(8) as threads:
        adding = [threads.submit(samples.add, f"{n % 7}", ONES) for n in range(8)]
        while len(samples._together._queue) < 7:  # one holds the first, and waits
            assert not any(each.done() for each in adding)
            threading.Event().wait(0.005)
        samples._lock.release()
        try:
            answers = [each.result(30) for each in adding]
        finally:
            samples._lock.acquire()
    assert sorted(answers) == [False] + [True] * 7
    assert len(commits) == 2


def test_nothing_of_many_is_kept_when_the_database_fails_midway(
    path: Path, samples: SampleDatabase
) -> None:
    many = [samples.prepare(f"{n}", ONES, source="s", sequence=n) for n in range(3)]
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON samples WHEN NEW.id = '2' "
            "BEGIN SELECT raise(ABORT, 'broken'); END"
        )
    with pytest.raises(StoreError, match="broken"):
        samples.add_many(many)
    assert samples.figures().sources == {}
    assert samples.add_many(many[:2]) == [True, True]
    assert stored_ids(path) == ["0", "1"]


def test_a_label_that_comes_first_waits_for_its_sample(path: Path) -> None:
    with SampleDatabase(path, StoreConfig(holdout_fraction=0.0)) as samples:
        assert not samples.label("a", 4, wait=True)
        assert not samples.label("a", 5, wait=True)
        assert samples.figures().waiting_labels == 1
    with SampleDatabase(path, StoreConfig(holdout_fraction=0.0)) as samples:
        assert samples.add("a", ONES)
        assert samples.labelled("train").targets.tolist() == [5]
        assert samples.figures().waiting_labels == 0
        assert samples.label("a", 6, wait=True)
        assert samples.labelled("train").targets.tolist() == [6]


def test_a_target_that_comes_with_its_sample_beats_a_label_that_waits(
    samples: SampleDatabase,
) -> None:
    samples.label("a", 5, wait=True)
    samples.add("a", ONES, 1)
    samples.add("b", ONES)
    assert samples.labelled("train").targets.tolist() == [1]
    assert samples.figures().waiting_labels == 0


def test_waiting_labels_are_bounded_in_bytes_and_age(path: Path) -> None:
    now_s = [1_000_000.0]
    config = StoreConfig(max_bytes=16 * 1024, max_age_s=60.0)
    with SampleDatabase(path, config, lambda: now_s[0]) as samples:
        for index in range(100):
            samples.label(f"{index:03}", index, wait=True)
        bound = 1024 // (128 + 3 + 8)
        assert samples.figures().waiting_labels == bound
        samples.label("too large", np.zeros(1000), wait=True)
        assert samples.figures().waiting_labels == 0
        samples.label("a", 1, wait=True)
        now_s[0] += 61
        samples.add("b", ONES)
        assert samples.figures().waiting_labels == 0


def test_a_label_too_large_for_its_sample_leaves_the_sample_as_it_is(
    path: Path, samples: SampleDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    with SampleDatabase(path, StoreConfig(max_bytes=4096)) as small:
        small.add("a", np.zeros(900, np.float32))
        assert not small.add("a", ONES, np.zeros(900, np.float32))
        assert small.counts() == (0, 1)
    assert "a label is left out" in caplog.text
