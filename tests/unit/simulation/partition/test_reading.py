"""From files to pools, and everything that can be wrong with a file."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedge.errors import ConfigError, FedgeError, TaskError
from simulation.partition.pool import Pool
from simulation.partition.reading import read_pool
from simulation.partition.settings import DataConfig
from tests.unit.simulation.partition.pools import GroupTask, PoolTask

ROWS: list[tuple[Any, ...]] = [
    ("a", "b", "target", "who", "when"),
    (1.5, 10, 0, "eve", "2024-01-03 00:00:00"),
    (2.5, 20, 1, "bob", "2024-01-01 00:00:00"),
    (3.5, 30, 0, "eve", "2024-01-02 00:00:00"),
]
CSV = "\n".join(",".join(map(str, row)) for row in ROWS) + "\n"


def read(path: Path, **options: Any) -> Pool:
    return read_pool(DataConfig(source=str(path), **options), PoolTask())


def write_csv(folder: Path, text: str = CSV) -> Path:
    path = folder / "rows.csv"
    path.write_text(text)
    return path


def write_gz(folder: Path) -> Path:
    path = folder / "rows.csv.gz"
    path.write_bytes(gzip.compress(CSV.encode()))
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "rows.parquet"
    names, *rows = ROWS
    columns: dict[str, Any] = {n: [row[i] for row in rows] for i, n in enumerate(names)}
    columns["when"] = np.array(columns["when"], "datetime64[us]")
    pq.write_table(pa.table(columns), path)
    return path


def write_npz(folder: Path, **changed: Any) -> Path:
    path = folder / "rows.npz"
    names, *rows = ROWS
    arrays: dict[str, Any] = {n: np.array([row[i] for row in rows]) for i, n in enumerate(names)}
    arrays["when"] = arrays["when"].astype("datetime64[s]")
    np.savez(path, **{**arrays, **changed})
    return path


@pytest.mark.parametrize("write", [write_csv, write_gz, write_parquet, write_npz])
def test_every_kind_of_file_gives_the_same_pool(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    pool = read(write(tmp_path), key="who", time="when")
    np.testing.assert_array_equal(pool.examples.inputs, [[1.5, 10], [2.5, 20], [3.5, 30]])
    assert pool.examples.inputs.dtype == np.float32
    np.testing.assert_array_equal(pool.examples.targets, [0, 1, 0])
    assert pool.examples.targets.dtype == np.int64
    assert pool.keys is not None
    assert pool.keys.names == ("bob", "eve")
    np.testing.assert_array_equal(pool.keys.codes, [1, 0, 1])
    assert pool.times is not None
    np.testing.assert_array_equal(np.argsort(pool.times), [1, 2, 0])


def test_columns_are_taken_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    pool = read(write_csv(tmp_path), inputs=("b", "a"))
    np.testing.assert_array_equal(pool.examples.inputs[0], [10, 1.5])


def test_numeric_keys_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    text = "a,b,target,id\n1,1,0,10\n1,1,0,9\n1,1,0,10\n"
    pool = read(write_csv(tmp_path, text), key="id")
    assert pool.keys is not None
    assert pool.keys.names == ("9", "10")
    np.testing.assert_array_equal(pool.keys.codes, [1, 0, 1])


def test_an_array_or_a_list_column_takes_the_tasks_shape(tmp_path: Path) -> None:
    class Image(PoolTask):
        input_shape = (1, 2, 3)  # type: ignore[assignment]

    images = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.savez(tmp_path / "images.npz", images=images, target=np.zeros(4))
    table = pa.table({"images": list(images), "target": [0.0] * 4})
    pq.write_table(table, tmp_path / "images.parquet")
    for name in ("images.npz", "images.parquet"):
        pool = read_pool(DataConfig(source=str(tmp_path / name)), Image())
        np.testing.assert_array_equal(pool.examples.inputs, images.reshape(4, 1, 2, 3))
        assert pool.examples.inputs.dtype == pool.examples.targets.dtype == np.float32


def test_types_are_as_asked_for(tmp_path: Path) -> None:
    path = write_csv(tmp_path)
    assert read(path, inputs=("b", "target"), target="a").examples.targets.dtype == np.float32
    tokens = read(path, inputs=("b", "target"), target="a", input_dtype="int64")
    assert tokens.examples.inputs.dtype == np.int64
    assert read(path, inputs=("a", "b"), target_dtype="float32").examples.targets.dtype == "f4"


def test_rows_that_lack_a_value_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a,b,target,who\n1,1,0,x\nNA,2,0,y\n3,3,,x\n4,?,1,x\n5,5,1,\n6,6,1,z\n"
    with caplog.at_level("INFO"):
        pool = read(
            write_csv(tmp_path, text),
            key="who",
            missing="drop",
            missing_values=("?",),
            target_dtype="int64",
        )
    np.testing.assert_array_equal(pool.examples.inputs, [[1, 1], [6, 6]])
    np.testing.assert_array_equal(pool.examples.targets, [0, 1])
    assert pool.keys is not None
    assert pool.keys.names == ("x", "z")
    assert "4 of 6 rows lack a value" in caplog.text


BAD_CSV = {
    "1,1,0\n2,oops,1\n": (TaskError, r"rows\.csv: b, row 1 \(counted from 0\) is 'oops'.*number"),
    "1,1,0\n2, ,1\n": (TaskError, r"b, row 1 .* is ' '.*data\.missing_values"),
    "1,1,0\n2,3,1\nnan,2,0\n": (TaskError, r"rows\.csv: a, row 2 .*NaN or missing \(1 of its 3"),
    "1,,0\n2,3,1\n": (TaskError, r"b, row 0 .*data\.missing = 'drop'"),
    "1,1,0\n2,3,\n": (TaskError, r"target, row 1 .*missing"),
    "1,inf,0\n": (TaskError, r"b, row 0 .*inf.*finite"),
    "1,1e300,0\n": (TaskError, r"b, row 0 .*inf.*finite"),
    "1,1\n": (TaskError, r"cannot be read as a CSV.*[Ee]xpected 3 columns, got 2"),
    "": (TaskError, "rows.csv has no rows"),
}


@pytest.mark.parametrize("text", BAD_CSV)
def test_what_is_wrong_with_a_csv_is_named(text: str, tmp_path: Path) -> None:
    error, pattern = BAD_CSV[text]
    with pytest.raises(error, match=pattern):
        read(write_csv(tmp_path, "a,b,target\n" + text))


def test_a_fraction_is_no_whole_number(tmp_path: Path) -> None:
    path = write_csv(tmp_path)
    with pytest.raises(TaskError, match=r"a, row 0 \(counted from 0\) is 1.5.*whole"):
        read(path, inputs=("a", "b"), input_dtype="int64")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"target": "tarket"}, r"^data\.target: .*no column 'tarket'; did you mean 'target'\?"),
        ({"inputs": ("a", "zzz")}, r"^data\.inputs: .*'zzz'; it has: a, b, target, who, when"),
        ({"key": "zzz"}, r"^data\.key: .*rows\.csv has no column 'zzz'"),
        ({"time": "zzz"}, r"^data\.time: "),
        ({"inputs": ("a",)}, r"^data\.inputs: .* 1 numbers an example.*takes 2"),
        ({"time": "who"}, r"who is of type object.*time stamp"),
    ],
)
def test_columns_that_cannot_be_used_are_named(
    options: dict[str, Any], pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(FedgeError, match=pattern):
        read(write_csv(tmp_path), **{"inputs": ("a", "b"), **options})


def test_a_file_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.inputs: .*no column left"):
        read(write_csv(tmp_path, "target\n1\n"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="more than one column called 'a'"):
        read(write_csv(tmp_path, "a,a,target\n1,1,0\n"))


BAD_NPZ: list[tuple[dict[str, Any], str]] = [
    ({"a": np.zeros(2)}, r"rows\.npz: a has 2 rows and target 3"),
    ({"a": np.array([1.0, np.nan, 2.0])}, r"rows\.npz: a, row 1 .*NaN"),
    ({"a": np.array(["1", "x", "3"])}, "a, row 1 .*'x'"),
    ({"a": np.array(["1", "2", "3"])}, "a holds numbers as text"),
    ({"a": np.float32(1)}, "a is a single value"),
    ({"a": np.array([1j, 2, 3])}, "a is of type complex128"),
    ({"a": np.array([{}, {}, {}])}, "the array 'a' cannot be read"),
    ({"who": np.zeros((3, 2))}, r"who has the shape \(3, 2\); expected one key"),
]


@pytest.mark.parametrize(("changed", "pattern"), BAD_NPZ)
def test_what_is_wrong_with_an_npz_is_named(
    changed: dict[str, Any], pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=pattern):
        read(write_npz(tmp_path, **changed), inputs=("a", "b"), key="who")


BAD_PARQUET: list[tuple[dict[str, Any], str]] = [
    ({"a": [[1.0, 2.0], [3.0]]}, r"a, row 1 .*has 1 values; expected 2"),
    ({"a": [[1.0, 2.0], None]}, r"a, row 1 .*has no list; expected 2"),
    ({"a": [[1.0, 2.0], [None, 1.0]]}, r"a, row 1 .*NaN or missing"),
    ({"a": [None, None]}, r"a, row 0 .*missing \(2 of its 2"),
    ({"a": [{"x": 1}, {"x": 2}]}, r"a is of type struct.*expected numbers"),
    ({"a": [b"1", b"2"]}, r"a is of type binary; expected numbers"),
]


@pytest.mark.parametrize(("columns", "pattern"), BAD_PARQUET)
def test_what_is_wrong_with_a_parquet_file_is_named(
    columns: dict[str, Any], pattern: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({**columns, "target": [0, 1]}), path)
    with pytest.raises(TaskError, match=pattern):
        read(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.npz", "rows.parquet"])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.source: no such file: .*{name}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.npz", "rows.parquet", "rows.csv.gz"])
def test_a_file_that_is_something_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"neither here nor there")
    with pytest.raises(TaskError, match=f"{name} cannot be read"):
        read(tmp_path / name)


def test_a_source_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.source: must be empty.*\.parquet; got 'tsak'"):
        read(Path("tsak"))


def test_a_tasks_natural_clients_stay_known() -> None:
    pool = read_pool(DataConfig(source="task"), GroupTask())
    assert len(pool) == 21
    assert pool.keys is not None
    np.testing.assert_array_equal(pool.keys.codes, pool.examples.targets)
    assert read_pool(DataConfig(source="task"), PoolTask()).keys is None


def test_a_nan_in_a_tasks_own_data_is_named() -> None:
    class Broken(PoolTask):
        def client_data(self, client: int, num_clients: int) -> Any:
            examples = super().client_data(client, num_clients)
            examples.inputs[7, 1] = np.nan
            return examples

    with pytest.raises(TaskError, match=r"the task 'pooled': inputs, row 7 .*entry 1 is nan"):
        read_pool(DataConfig(source="task"), Broken())
