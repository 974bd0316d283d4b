"""CSV and Parquet files, read by pyarrow."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fedge.errors import ConfigError, TaskError
from simulation.partition.columns import Array, not_numbers, sortable
from simulation.partition.pool import Keys
from simulation.partition.settings import DataConfig


class TableColumns:
    """Columns of an Arrow table.

    Args:
        where: they come from.
        names: in order.
        pick: returns one of them as a pyarrow ``ChunkedArray``.
    """

    def __init__(self, where: str, names: Iterable[str], pick: Callable[[str], Any]) -> None:
        self.where = where
        self.names = tuple(names)
        self._pick = pick
        twice = [name for name, times in Counter(self.names).items() if times > 1]
        if twice:
            raise TaskError(f"{where} has more than one column called {twice[0]!r}: rename one")

    def numbers(self, name: str) -> Array:
        """Return a column of numbers, ``[N]``, or of lists of equal length, ``[N, L]``."""
        return self._to_numbers(name, self._pick(name))

    def times(self, name: str) -> Array:
        """Return a column to sort by, ``[N]``."""
        return sortable(self.where, name, self._pick(name).to_numpy())

    def keys(self, name: str) -> Keys:
        """Return whose each row is; the owners stand in the order of their keys."""
        encoded = self._pick(name).combine_chunks().dictionary_encode()
        found = encoded.dictionary.to_pylist()
        order = sorted(range(len(found)), key=found.__getitem__)
        rank = np.empty(len(found) + 1, np.int64)
        rank[order] = np.arange(len(found))
        rank[-1] = -1
        codes = encoded.indices.fill_null(len(found)).to_numpy()
        return Keys(rank[codes], tuple(str(found[place]) for place in order))

    def _to_numbers(self, name: str, column: Any) -> Array:
        kind = column.type
        types = _pyarrow("types")
        if types.is_dictionary(kind):
            return self._to_numbers(name, column.cast(kind.value_type))
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return self._to_rows(name, column)
        if types.is_string(kind) or types.is_large_string(kind):
            raise not_numbers(self.where, name, _cells(column))
        if types.is_null(kind) or types.is_decimal(kind) or column.null_count:
            column = self._to_float64(name, column)
        values: Array = column.to_numpy()
        if values.dtype.kind not in "biuf":
            raise TaskError(f"{self.where}: {name} is of type {kind}; expected numbers")
        return values

    def _to_float64(self, name: str, column: Any) -> Any:
        pa = _pyarrow()
        try:
            return column.cast(pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TaskError(
                f"{self.where}: {name} is of type {column.type}; expected numbers"
            ) from error

    def _to_rows(self, name: str, column: Any) -> Array:
        """Return a column of lists as rows, ``[N, L]``."""
        lists = column.combine_chunks()
        lengths = lists.value_lengths().fill_null(-1).to_numpy()
        if len(lengths) == 0:
            return np.zeros((0, 0), np.float32)
        broken = np.flatnonzero((lengths != lengths[0]) | (lengths < 0))
        if len(broken):
            row = broken[0]
            found = f"{lengths[row]} values" if lengths[row] >= 0 else "no list"
            raise TaskError(
                f"{self.where}: {name}, row {row} (counted from 0) has {found}; expected "
                f"{max(lengths[0], 0)} as in row 0"
            )
        entries = _pyarrow().chunked_array([lists.flatten()])
        return self._to_numbers(name, entries).reshape(len(lengths), -1)


def _cells(column: Any) -> Iterable[object]:
    return (cell.as_py() for chunk in column.chunks for cell in chunk)


def open_csv(path: Path, config: DataConfig) -> TableColumns:
    """Return the columns of a CSV with a header; ``.csv.gz`` is unpacked on the way.

    Raises:
        TaskError: its rows do not all have as many cells as its header.
    """
    csv, pa = _pyarrow("csv"), _pyarrow()
    defaults = csv.ConvertOptions()
    options = csv.ConvertOptions(
        null_values=[*defaults.null_values, *config.missing_values], strings_can_be_null=True
    )
    try:
        table = csv.read_csv(path, convert_options=options)
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise TaskError(f"{path} cannot be read as a CSV with a header: {error}") from error
    return TableColumns(str(path), table.column_names, table.column)


def open_parquet(path: Path, config: DataConfig) -> TableColumns:
    """Return the columns of a Parquet file.

    Raises:
        TaskError: it is not one.
    """
    del config
    parquet, pa = _pyarrow("parquet"), _pyarrow()
    try:
        table = parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TaskError(f"{path} cannot be read as a Parquet file: {error}") from error
    names = table.schema_arrow.names
    return TableColumns(str(path), names, lambda name: table.read([name]).column(0))


def _pyarrow(module: str = "") -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError as error:
        raise ConfigError(
            "CSV and Parquet need pyarrow, which is not installed: pip install pyarrow",
            key="data.source",
        ) from error
