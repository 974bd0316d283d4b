"""The Parquet table of metrics."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ConfigError
from simulation.report.table import TableRun, flatten, to_table, write_table
from tests.unit.simulation.report.run_folders import metrics_of, simulated

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(-1e9, 1e9) | st.text()
)


def test_a_table_comes_back_from_disk_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    runs = [
        TableRun("a", [metrics_of(0), simulated(1)], seed=3, keys={"server.rate": 0.1}),
        TableRun("b", [metrics_of(0)], seed=4, keys={"server.rate": 1}),
    ]
    write_table(path, runs)
    table = pq.read_table(path)
    assert table.column_names[:4] == ["run", "seed", "server.rate", "round"]
    rows = table.to_pylist()
    assert [(row["run"], row["seed"], row["round"]) for row in rows] == [
        ("a", 3, 0),
        ("a", 3, 1),
        ("b", 4, 0),
    ]
    assert [row["server.rate"] for row in rows] == [0.1, 0.1, 1.0]
    assert [row["simulation.outcomes.drop-out"] for row in rows] == [None, 1, None]
    assert rows[1]["evaluation.accuracy_deciles.10"] == pytest.approx(0.7)
    assert rows[1]["epsilon.max"] == 0.5


def test_types_are_the_same_whether_or_not_a_figure_is_known() -> None:
    full = to_table([TableRun("a", [simulated(1, refinement_detail="late")], seed=0)]).schema
    bare = to_table([TableRun("a", [metrics_of(0)])]).schema
    assert set(bare.names) <= set(full.names)
    for name in bare.names:
        assert bare.field(name).type == full.field(name).type, name
    assert full.field("round").type == pa.int64()
    assert full.field("seed").type == pa.int64()
    assert full.field("applied").type == pa.bool_()
    assert full.field("accuracy_test").type == pa.float64()
    assert full.field("num_selected").type == pa.int64()
    assert full.field("refinement_detail").type == pa.string()


@pytest.mark.parametrize(
    ("values", "expected", "kind"),
    [
        ([1, 2.5], [1.0, 2.5], pa.float64()),
        ([True, 2], ["true", "2"], pa.string()),
        ([1, "x"], ["1", "x"], pa.string()),
        ([None, None], [None, None], pa.float64()),
        ([2**63, 1], [float(2**63), 1.0], pa.float64()),
        ([10**400, 1], [None, 1.0], pa.float64()),
    ],
)
def test_values_of_several_kinds_share_the_narrowest_type(
    values: list[Any], expected: list[Any], kind: pa.DataType
) -> None:
    rounds = [{"round": at, "v": value} for at, value in enumerate(values)]
    column = to_table([TableRun("a", rounds)])["v"]
    assert column.type == kind
    assert column.to_pylist() == expected


@given(st.lists(st.dictionaries(st.text(), SCALARS, max_size=4), max_size=4))
def test_any_scalars_make_a_table_with_a_row_a_round(extras: list[dict[str, Any]]) -> None:
    rounds = [{"round": at, "more": extra} for at, extra in enumerate(extras)]
    table = to_table([TableRun("a", rounds)])
    assert table.num_rows == len(rounds)
    for row, extra in zip(table.to_pylist(), extras, strict=True):
        for name, value in extra.items():
            found = row[f"more.{name}"]
            # Numbers may have become floats, and others text, by what stands in other rows.
            assert found in (value, None if value is None else json.dumps(value))


def test_epsilon_of_a_million_nodes_is_one_column() -> None:
    flat = flatten({"round": 1, "epsilon": {str(node): node / 1e6 for node in range(1000)}})
    assert flat == {"round": 1, "epsilon.max": 0.000999}


def test_lists_as_swept_values_are_text() -> None:
    table = to_table([TableRun("a", [{"round": 0}], keys={"task.sizes": [1, 2], "name": None})])
    assert table["task.sizes"].to_pylist() == ["[1, 2]"]


def test_a_table_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*none/x\.parquet"):
        write_table(tmp_path / "none" / "x.parquet", [TableRun("a", [{"round": 0}])])
