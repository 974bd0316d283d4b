"""From a source's columns to a pool: inputs, targets, keys and times, each checked."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError, TaskError
from fedge.task import Examples, Task
from simulation.partition.columns import Array, Columns, missing_rows
from simulation.partition.pool import Keys, Pool, check_finite, task_pool
from simulation.partition.settings import TASK_SOURCE, DataConfig
from simulation.partition.sources import open_source

_log = logging.getLogger(__name__)


def read_pool(config: DataConfig, task: Task) -> Pool:
    """Return what is to be divided.

    Raises:
        ConfigError: there is no such source or column.
        TaskError: what is in it cannot be learnt from; names column and row.
    """
    if config.source == TASK_SOURCE:
        return task_pool(task)
    return _Reader(config, task, open_source(config)).read()


class _Reader:
    """Reads the configured columns once.

    Whether a row has all its values is noted in `_keep` while its columns are read.
    """

    def __init__(self, config: DataConfig, task: Task, columns: Columns) -> None:
        self._config = config
        self._task = task
        self._columns = columns
        self._where = columns.where
        self._check_names()
        self._raw_targets = columns.numbers(config.target)
        self._keep = np.ones(len(self._raw_targets), np.bool_)
        self._check_rows()

    def read(self) -> Pool:
        config = self._config
        targets = self._targets()
        inputs = self._inputs(self._input_names())
        keys = self._keys() if config.key else None
        times = self._times() if config.time else None
        keep = self._keep
        if not keep.all():
            _log.info(
                "%s: %d of %d rows lack a value and are left out",
                self._where,
                np.count_nonzero(~keep),
                len(keep),
            )
            inputs, targets = inputs[keep], targets[keep]
            keys = None if keys is None else _still_there(Keys(keys.codes[keep], keys.names))
            times = None if times is None else times[keep]
            self._check_rows()
        return Pool(self._where, Examples(inputs, targets), keys, times)

    def _check_rows(self) -> None:
        if not self._keep.any():
            raise TaskError(f"{self._where} has no rows to learn from")

    def _input_names(self) -> tuple[str, ...]:
        config = self._config
        others = (config.target, config.key, config.time)
        names = config.inputs or tuple(n for n in self._columns.names if n not in others)
        if not names:
            raise ConfigError(
                f"{self._where} has no column left for the inputs; it has: "
                f"{_listed(self._columns.names)}",
                key="data.inputs",
            )
        return names

    def _check_names(self) -> None:
        config, known = self._config, self._columns.names
        asked = [("inputs", name) for name in config.inputs]
        asked += [("target", config.target), ("key", config.key), ("time", config.time)]
        for key, name in asked:
            if name and name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has: {_listed(known)}"
                raise ConfigError(
                    f"{self._where} has no column {name!r}; {hint}", key=f"data.{key}"
                )

    def _targets(self) -> Array:
        name = self._config.target
        values = self._present(name, self._raw_targets)
        default = "int64" if values.dtype.kind in "biu" else "float32"
        return self._convert(name, values, self._config.target_dtype or default)

    def _inputs(self, names: Sequence[str]) -> Array:
        """Return the columns one after another, in the shape that the task takes."""
        shape = tuple(self._task.input_shape)
        columns = [
            self._convert(
                name, self._present(name, self._columns.numbers(name)), self._config.input_dtype
            )
            for name in names
        ]
        inputs = columns[0] if len(columns) == 1 else _side_by_side(columns)
        width = math.prod(inputs.shape[1:])
        if width != math.prod(shape):
            raise ConfigError(
                f"{self._where}: the inputs are {width} numbers an example, and the task "
                f"{self._task.name!r} takes {math.prod(shape)} (shape {shape}); they were: "
                f"{_listed(names)}",
                key="data.inputs",
            )
        return inputs.reshape(len(inputs), *shape)

    def _present(self, name: str, raw: Array) -> Array:
        """Return a column with zeros in rows that lack a value and will be left out."""
        missing = self._take_missing(name, missing_rows(raw))
        if not missing.any():
            return raw
        filled = raw.copy()
        filled[missing] = 0
        return filled

    def _keys(self) -> Keys:
        keys = self._columns.keys(self._config.key)
        self._take_missing(self._config.key, keys.codes < 0)
        return keys

    def _times(self) -> Array:
        times = self._columns.times(self._config.time)
        self._take_missing(self._config.time, missing_rows(times))
        return times

    def _take_missing(self, name: str, missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Note (or refuse) the rows that lack a value, and columns of another length."""
        if len(missing) != len(self._keep):
            raise TaskError(
                f"{self._where}: {name} has {len(missing)} rows and {self._config.target} "
                f"{len(self._keep)}; expected as many of each"
            )
        if missing.any() and self._config.missing == "error":
            raise TaskError(
                f"{self._where}: {name}, row {np.argmax(missing)} (counted from 0) is NaN or "
                f"missing ({np.count_nonzero(missing)} of its {len(missing)} rows are); fill "
                "them, or set data.missing = 'drop' to leave such rows out"
            )
        self._keep &= ~missing
        return missing

    def _convert(self, name: str, raw: Array, dtype: str) -> Array:
        """Return a column in another type; refuses what that type cannot hold."""
        if dtype == "int64":
            check_finite(self._where, name, raw)
            rows = raw.reshape(len(raw), -1)
            fractional = rows != np.trunc(rows) if raw.dtype.kind == "f" else np.zeros(0)
            if fractional.any():
                row = int(np.argmax(fractional.any(axis=1)))
                raise TaskError(
                    f"{self._where}: {name}, row {row} (counted from 0) is "
                    f"{rows[row][fractional[row]][0]}; "
                    "expected a whole number (int64 was asked for)"
                )
            return raw.astype(np.int64, copy=False)
        with np.errstate(over="ignore"):  # found below, as an infinity
            values = raw.astype(dtype, copy=False)
        check_finite(self._where, name, values)
        return values


def _side_by_side(columns: list[Array]) -> Array:
    return np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)


def _still_there(keys: Keys) -> Keys:
    """Return keys without the owners that have no row left."""
    present, codes = np.unique(keys.codes, return_inverse=True)
    return Keys(codes.astype(np.int64), tuple(keys.names[code] for code in present))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_LISTED])
    return shown if len(names) <= _MOST_LISTED else f"{shown} and {len(names) - _MOST_LISTED} more"


_MOST_LISTED = 8
