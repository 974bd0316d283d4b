import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from edge_client.sample_export import Exported, export
from edge_client.sample_reader import ROWS_AT_A_TIME, SampleReader
from edge_client.sample_store import SampleDatabase
from edge_client.settings import StoreConfig
from fedge.errors import ConfigError, StoreError

CONFIG = StoreConfig(max_age_s=3e9, holdout_fraction=0.3)


@pytest.fixture
def samples(tmp_path: Path) -> Iterator[SampleDatabase]:
    with SampleDatabase(tmp_path / "samples.db", CONFIG, lambda: 1_700_000_000.5) as database:
        yield database


@pytest.fixture
def reader(tmp_path: Path, samples: SampleDatabase) -> Iterator[SampleReader]:
    with SampleReader(tmp_path / "samples.db", CONFIG) as reader:
        yield reader


def fill(samples: SampleDatabase, number: int) -> None:
    """Add samples numbered from 0, of which every third has no label."""
    samples.add_many(
        [
            samples.prepare(f"id-{n}", np.full((2, 2), n, np.float32), None if n % 3 == 2 else n)
            for n in range(number)
        ]
    )


def test_a_parquet_file_holds_every_sample_with_its_shape_and_split(
    tmp_path: Path, samples: SampleDatabase, reader: SampleReader
) -> None:
    number = 2 * ROWS_AT_A_TIME + 5
    fill(samples, number)
    kept = set(reader.labelled("holdout").inputs[:, 0, 0].tolist())
    samples.add("whole numbers", [1, 2, 3], [0.5])
    assert export(reader, tmp_path / "out.parquet") == Exported(number + 1, 0)
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"id-{n}" for n in range(number)] + ["whole numbers"]
    assert (rows[4]["input"], rows[4]["input_shape"]) == ([4.0] * 4, [2, 2])
    assert (rows[4]["target"], rows[4]["target_shape"]) == ([4.0], [])
    assert rows[5]["target"] is None
    assert (rows[-1]["input_dtype"], rows[-1]["target_dtype"]) == ("int64", "float32")
    assert rows[0]["added_at"].timestamp() == 1_700_000_000.5
    held_out = [row for row in rows[:-1] if row["split"] == "holdout"]
    assert {row["input"][0] for row in held_out if row["target"] is not None} == kept
    assert len(kept) > 10


def test_an_npz_file_holds_labelled_and_unlabelled_samples_apart(
    tmp_path: Path, samples: SampleDatabase, reader: SampleReader
) -> None:
    fill(samples, 9)
    assert export(reader, tmp_path / "out.npz") == Exported(9, 0)
    with np.load(tmp_path / "out.npz") as found:
        assert found["ids"].tolist() == [f"id-{n}" for n in (0, 1, 3, 4, 6, 7)]
        assert found["targets"].tolist() == [0, 1, 3, 4, 6, 7]
        assert found["inputs"].shape == (6, 2, 2)
        assert found["inputs"][:, 0, 0].tolist() == [0, 1, 3, 4, 6, 7]
        assert found["unlabelled_ids"].tolist() == ["id-2", "id-5", "id-8"]
        assert found["unlabelled_inputs"][:, 1, 1].tolist() == [2, 5, 8]
        assert set(found["splits"]) <= {"train", "holdout"}


@pytest.mark.parametrize("name", ["out.npz", "out.parquet"])
def test_an_export_of_nothing_is_a_file_of_nothing_that_its_owner_alone_can_read(
    tmp_path: Path, reader: SampleReader, name: str
) -> None:
    (tmp_path / name).write_text("an older export")
    assert export(reader, tmp_path / name) == Exported(0, 0)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert not list(tmp_path.glob(".*.tmp"))


def test_damaged_samples_are_left_out_and_counted(
    tmp_path: Path, samples: SampleDatabase, reader: SampleReader
) -> None:
    fill(samples, 3)
    with sqlite3.connect(tmp_path / "samples.db") as connection:
        connection.execute("UPDATE samples SET input = zeroblob(16) WHERE id = 'id-1'")
    assert export(reader, tmp_path / "out.parquet") == Exported(2, 1)


def test_shapes_that_do_not_fit_one_npz_are_refused_and_leave_no_file(
    tmp_path: Path, samples: SampleDatabase, reader: SampleReader
) -> None:
    samples.add("a", [1.0], 0)
    samples.add("b", [1.0, 2.0], 0)
    with pytest.raises(StoreError, match=r"export to \.parquet"):
        export(reader, tmp_path / "out.npz")
    assert not list(tmp_path.glob("*out*"))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, reader: SampleReader) -> None:
    with pytest.raises(ConfigError, match=r"--to: cannot write .*nowhere/out\.npz"):
        export(reader, tmp_path / "nowhere" / "out.npz")
    with pytest.raises(ConfigError, match=r"should end with \.parquet or \.npz"):
        export(reader, tmp_path / "out.csv")


def test_without_pyarrow_it_says_what_to_install(
    tmp_path: Path, reader: SampleReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        export(reader, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*out*"))
