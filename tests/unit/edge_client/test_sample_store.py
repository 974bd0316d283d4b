import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.sample_reader import SampleReader, split_position
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from fedge.errors import InvalidSample, StoreError, UnknownSample

ONES = np.ones(4, np.float32)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


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


def held_out(path: Path) -> set[float]:
    """Return the first input values (unique in these tests) of the held-out samples."""
    with SampleReader(path, StoreConfig()) as reader:
        return set(reader.labelled("holdout").inputs[:, 0].tolist())


def test_a_labelled_sample_comes_back_as_it_was(samples: SampleDatabase) -> None:
    samples.add("a", np.array([[1, 2], [3, 4]], np.float32), np.int64(3))
    found = samples.labelled("train")
    assert found.inputs.tolist() == [[[1, 2], [3, 4]]]
    assert found.inputs.dtype == np.float32
    assert found.targets.tolist() == [3]
    assert found.targets.dtype == np.int64


def test_an_unlabelled_sample_waits_for_its_label(samples: SampleDatabase) -> None:
    samples.add("a", ONES)
    samples.add("b", ONES, 1)
    assert samples.counts() == (1, 1)
    assert samples.labelled("train").targets.tolist() == [1]
    samples.label("a", 2)
    assert samples.counts() == (2, 0)
    assert samples.labelled("train").targets.tolist() == [2, 1]


def test_a_label_can_be_corrected(samples: SampleDatabase) -> None:
    samples.add("a", ONES, 1)
    samples.label("a", 7)
    assert samples.labelled("train").targets.tolist() == [7]


def test_a_sample_delivered_twice_keeps_its_first_input(samples: SampleDatabase) -> None:
    samples.add("a", ONES, 1)
    samples.add("a", 5 * ONES)
    assert samples.counts() == (1, 0)
    samples.add("a", 5 * ONES, 2)
    found = samples.labelled("train")
    assert found.inputs.tolist() == [ONES.tolist()]
    assert found.targets.tolist() == [2]


def test_labelling_an_unknown_sample_is_refused_by_name(samples: SampleDatabase) -> None:
    with pytest.raises(UnknownSample, match="'nobody'"):
        samples.label("nobody", 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(samples: SampleDatabase, bad: float) -> None:
    with pytest.raises(InvalidSample, match="sample 'a': input has NaN or infinite"):
        samples.add("a", np.array([0, bad], np.float32), 1)
    with pytest.raises(InvalidSample, match="target"):
        samples.add("a", ONES, bad)
    samples.add("a", ONES)
    with pytest.raises(InvalidSample, match="target"):
        samples.label("a", bad)
    assert samples.counts() == (0, 1)


@pytest.mark.parametrize("sample_id", ["", "x" * 257, "\ud800"])
def test_ids_are_text_of_bounded_length(samples: SampleDatabase, sample_id: str) -> None:
    with pytest.raises(InvalidSample, match="sample id"):
        samples.add(sample_id, ONES)


def test_an_empty_store_has_no_examples(samples: SampleDatabase) -> None:
    assert len(samples.labelled("train")) == 0
    assert samples.counts() == (0, 0)


def test_train_and_holdout_are_disjoint_and_complete(path: Path) -> None:
    with SampleDatabase(path, StoreConfig(holdout_fraction=0.3)) as samples:
        for index in range(200):
            samples.add(f"id-{index}", np.array([index], np.float32), 0)
        parts = [set(samples.labelled(s).inputs[:, 0].tolist()) for s in ("train", "holdout")]
    assert parts[0] | parts[1] == set(range(200))
    assert not parts[0] & parts[1]
    assert 30 <= len(parts[1]) <= 90


def test_a_split_is_stable_when_more_samples_arrive_and_after_a_restart(path: Path) -> None:
    with SampleDatabase(path, StoreConfig()) as samples:
        for index in range(100):
            samples.add(f"id-{index}", np.array([index], np.float32), 0)
    before = held_out(path)
    with SampleDatabase(path, StoreConfig()) as samples:
        for index in range(100, 300):
            samples.add(f"id-{index}", np.array([index], np.float32), 0)
    after = held_out(path)
    assert before
    assert {value for value in after if value < 100} == before


@given(st.text(st.characters(codec="utf-8")))
def test_split_positions_lie_between_zero_and_one(sample_id: str) -> None:
    assert 0 <= split_position(sample_id) < 1
    assert split_position(sample_id) == split_position(sample_id)


def test_split_positions_are_those_of_every_release() -> None:
    assert split_position("a") == int("ca978112ca1b", 16) / 2**48  # sha256("a")


def test_the_oldest_samples_make_room_and_the_file_stays_bounded(path: Path) -> None:
    config = StoreConfig(max_bytes=100_000, holdout_fraction=0.0)
    with SampleDatabase(path, config) as samples:
        for index in range(500):
            samples.add(f"{index:03}", np.full(250, index, np.float32), index)
        kept = samples.labelled("train").targets.tolist()
    assert kept == list(range(500 - len(kept), 500))
    assert 80 <= len(kept) <= 100
    assert path.stat().st_size < 2 * config.max_bytes


def test_labels_count_towards_the_bound(path: Path) -> None:
    with SampleDatabase(path, StoreConfig(max_bytes=4096)) as samples:
        samples.add("a", ONES)
        samples.add("b", ONES)
        samples.label("b", np.zeros(960, np.float32))
    assert stored_ids(path) == ["b"]


def test_the_byte_count_is_exact_after_every_kind_of_change(path: Path) -> None:
    with SampleDatabase(path, StoreConfig(max_bytes=4096)) as samples:
        for index in range(60):
            samples.add(f"{index % 25}", np.zeros(index, np.float32), np.zeros(index % 7))
            samples.label(f"{index % 25}", np.zeros(index % 5))
    with sqlite3.connect(path) as connection:
        (total,) = connection.execute("SELECT size_bytes FROM totals").fetchone()
        (expected,) = connection.execute(
            "SELECT sum(128 + length(id) + length(input) + ifnull(length(target), 0)) FROM samples"
        ).fetchone()
    assert total == expected <= 4096


def test_a_sample_larger_than_the_store_is_refused_and_the_rest_kept(path: Path) -> None:
    with SampleDatabase(path, StoreConfig(max_bytes=4096)) as samples:
        samples.add("small", ONES)
        with pytest.raises(InvalidSample, match=r"store\.max_bytes"):
            samples.add("large", np.zeros(1024, np.float32))
        with pytest.raises(InvalidSample, match=r"store\.max_bytes"):
            samples.label("small", np.zeros(1024, np.float32))
    assert stored_ids(path) == ["small"]


def test_a_lower_bound_takes_effect_when_the_store_is_opened(path: Path) -> None:
    with SampleDatabase(path, StoreConfig()) as samples:
        for index in range(100):
            samples.add(f"{index}", np.zeros(100, np.float32))
    SampleDatabase(path, StoreConfig(max_bytes=4096)).close()
    assert stored_ids(path) == [str(index) for index in range(93, 100)]


def test_samples_beyond_the_age_are_neither_read_nor_kept(path: Path) -> None:
    clock = Clock()
    config = StoreConfig(max_age_s=60.0, holdout_fraction=0.0)
    with SampleDatabase(path, config, clock) as samples:
        samples.add("old", ONES, 1)
        clock.now_s += 40
        samples.add("young", ONES, 2)
        assert samples.counts() == (2, 0)
        clock.now_s += 40
        assert samples.labelled("train").targets.tolist() == [2]
        assert samples.counts() == (1, 0)
        samples.add("new", ONES)
    assert stored_ids(path) == ["young", "new"]


def test_a_sample_that_expired_can_be_added_again_but_not_labelled(path: Path) -> None:
    clock = Clock()
    with SampleDatabase(path, StoreConfig(max_age_s=60.0, holdout_fraction=0.0), clock) as samples:
        samples.add("a", ONES, 1)
        clock.now_s += 61
        samples.add("a", 2 * ONES, 2)
        assert samples.labelled("train").inputs.tolist() == [(2 * ONES).tolist()]
        clock.now_s += 61
        with pytest.raises(UnknownSample):
            samples.label("a", 3)


def test_examples_of_one_call_are_shaped_like_the_newest(
    samples: SampleDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    samples.add("other model", np.zeros(3, np.float32), 0)
    samples.add("a", ONES, 1)
    samples.add("other target", ONES, [1.0, 2.0])
    samples.add("b", 2 * ONES, 2)
    assert samples.labelled("train").targets.tolist() == [1, 2]
    assert "2 of 4 labelled samples are passed over" in caplog.text


def test_a_damaged_sample_is_passed_over(
    path: Path, samples: SampleDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    samples.add("a", ONES, 1)
    samples.add("b", ONES, 2)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE samples SET input = zeroblob(16) WHERE id = 'a'")
    assert samples.labelled("train").targets.tolist() == [2]
    assert "1 labelled samples are damaged" in caplog.text


def test_a_damaged_database_is_a_store_error_that_names_it(path: Path) -> None:
    SampleDatabase(path, StoreConfig()).close()
    content = bytearray(path.read_bytes())
    content[100:] = os.urandom(len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=str(path)):
        SampleDatabase(path, StoreConfig())


def test_threads_add_and_read_at_the_same_time(samples: SampleDatabase) -> None:
    def work(worker: int) -> None:
        for index in range(25):
            samples.add(f"{worker}-{index}", np.full(4, worker, np.float32), worker)
            samples.labelled("train")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = samples.labelled("train")
    assert np.bincount(found.targets).tolist() == [25, 25, 25, 25]
    assert (found.inputs == found.targets[:, None]).all()


WRITER = """
import sys
import numpy as np
from pathlib import Path
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig

samples = SampleDatabase(Path(sys.argv[1]), StoreConfig(holdout_fraction=0.0))
for index in range(100_000):
    samples.add(f"s-{index}", np.full(64, index, np.float32))
    samples.label(f"s-{index}", index)
    print(index, flush=True)
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_writer_loses_nothing_that_it_acknowledged(path: Path) -> None:
    acknowledged = -1
    with start_writer(path) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged == 150:
                writer.send_signal(signal.SIGKILL)
    assert acknowledged >= 150
    with SampleDatabase(path, StoreConfig(holdout_fraction=0.0)) as samples:
        found = samples.labelled("train")
        labelled, unlabelled = samples.counts()
    assert acknowledged < labelled <= acknowledged + 2
    assert unlabelled <= 1
    assert found.targets.tolist() == list(range(labelled))
    assert (found.inputs == found.targets[:, None]).all()


def test_another_process_reads_while_one_writes(path: Path) -> None:
    with start_writer(path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with SampleReader(path, StoreConfig(holdout_fraction=0.0)) as reader:
            sizes = []
            for line in writer.stdout:
                found = reader.labelled("train")
                sizes.append(len(found))
                assert len(found) > int(line)
                assert (found.inputs == found.targets[:, None]).all()
                if int(line) > 100:
                    break
        writer.kill()
    assert sizes == sorted(sizes)
