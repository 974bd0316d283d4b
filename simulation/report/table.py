"""Metrics of runs as one flat Parquet table: a row a round, a column a figure."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedge.durable import write_atomically
from fedge.errors import ConfigError
from simulation.report.runs import Rounds
from simulation.report.series import largest

Scalar = bool | int | float | str

TEXTS = ("run", "refinement", "refinement_detail", "model_digest")
"""Columns that are text even where every row leaves them out."""
PER_NODE = ("epsilon",)
"""Figures by node: there may be millions of nodes, so a row holds the largest."""
SECTIONS = ("evaluation", "evaluation.accuracy_deciles", "simulation")
"""Names that are no columns: null says that all their columns are."""
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, eq=False)
class TableRun:
    """The rows of one run.

    Attributes:
        seed: None where it is not known.
        keys: value of each swept setting, by dotted key.
    """

    name: str
    rounds: Rounds
    seed: int | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)


def write_table(path: Path, runs: Iterable[TableRun]) -> None:
    """Write the table of these runs as one step.

    Raises:
        ConfigError: it cannot be written; the text names the path.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(runs), sink)
    try:
        write_atomically(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {os.strerror(error.errno or 0)}") from error


def to_table(runs: Iterable[TableRun]) -> pa.Table:
    """Return the table: run, seed, swept settings, then the metrics; null where absent."""
    runs = list(runs)
    rows = [
        {"run": run.name, "seed": run.seed, **_keys(run), **flatten(metrics)}
        for run in runs
        for metrics in run.rounds
    ]
    names = dict.fromkeys(["run", "seed", *(key for run in runs for key in run.keys), "round"])
    names.update(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    return pa.table(columns)


def flatten(metrics: Mapping[str, Any]) -> dict[str, Scalar | None]:
    """Return every scalar of a round by dotted name, list entries by their number."""
    flat: dict[str, Scalar | None] = {}
    for name, value in metrics.items():
        if name in PER_NODE:
            flat[f"{name}.max"] = largest(value)
        else:
            _flatten(value, name, flat)
    return flat


def _flatten(value: Any, name: str, flat: dict[str, Scalar | None]) -> None:
    if isinstance(value, Mapping):
        for key, each in value.items():
            _flatten(each, f"{name}.{key}", flat)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            _flatten(each, f"{name}.{index}", flat)
    elif value is not None or name not in SECTIONS:
        flat[name] = value


def _keys(run: TableRun) -> dict[str, Any]:
    return {
        key: value if isinstance(value, Scalar) else json.dumps(value)
        for key, value in run.keys.items()
    }


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    """Return a column of the narrowest type that holds every value; numbers win over nothing."""
    kinds = {type(value) for value in values if value is not None}
    if name in TEXTS or (kinds and not kinds <= {bool} and not kinds <= {int, float}):
        texts = [_text(value) for value in values]
        return pa.array(texts, pa.string())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if (kinds == {int} or name in ("round", "seed")) and _fits(values):
        return pa.array(values, pa.int64())
    return pa.array([_float(value) for value in values], pa.float64())


def _fits(values: Sequence[Any]) -> bool:
    return all(value is None or (isinstance(value, int) and value in _INT64) for value in values)


def _float(value: int | float | None) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return None


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
