"""Named columns of a source, and those that are numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError
from simulation.partition.pool import Keys

Array = npt.NDArray[Any]


class Columns(Protocol):
    """What a source has, column by column."""

    @property
    def where(self) -> str:
        """Where it comes from, for error texts."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its columns in order."""
        ...

    def numbers(self, name: str) -> Array:
        """Return a column of numbers, ``[N, ...]``; what is missing is NaN.

        Raises:
            TaskError: a cell is not a number; names the first.
        """
        ...

    def times(self, name: str) -> Array:
        """Return a column to sort by, ``[N]``; what is missing is NaN or NaT."""
        ...

    def keys(self, name: str) -> Keys:
        """Return whose each row is; the code of what is missing is -1."""
        ...


class ArrayColumns:
    """Columns that are numpy arrays, each read when it is asked for.

    Args:
        where: they come from.
        names: in order.
        pick: returns one of them.
    """

    def __init__(self, where: str, names: Iterable[str], pick: Callable[[str], Array]) -> None:
        self.where = where
        self.names = tuple(names)
        self._pick = pick

    def numbers(self, name: str) -> Array:
        """Return an array of numbers, ``[N, ...]``."""
        values = self._array(name)
        if values.dtype.kind in "OUS":
            raise not_numbers(self.where, name, values.tolist())
        if values.dtype.kind not in "biuf":
            raise TaskError(f"{self.where}: {name} is of type {values.dtype}; expected numbers")
        return values

    def times(self, name: str) -> Array:
        """Return an array to sort by, ``[N]``."""
        return sortable(self.where, name, self._array(name))

    def keys(self, name: str) -> Keys:
        """Return whose each row is; the owners stand in the order of their keys."""
        values = self._array(name)
        if values.ndim != 1:
            raise TaskError(
                f"{self.where}: {name} has the shape {values.shape}; expected one key a row"
            )
        missing = missing_rows(values)
        found, codes = np.unique(values[~missing], return_inverse=True)
        owners = np.full(len(values), -1, np.int64)
        owners[~missing] = codes
        return Keys(owners, tuple(map(str, found.tolist())))

    def _array(self, name: str) -> Array:
        values = self._pick(name)
        if values.ndim == 0:
            raise TaskError(f"{self.where}: {name} is a single value; expected one a row")
        return values


def missing_rows(values: Array) -> npt.NDArray[np.bool_]:
    """Tell where a row has a NaN, a NaT or a None, ``[N]``."""
    kind = values.dtype.kind
    if kind == "f":
        return np.asarray(np.isnan(values).reshape(len(values), -1).any(axis=1))
    if kind in "mM":
        return np.asarray(np.isnat(values))
    if kind == "O":
        return np.fromiter((value is None for value in values), np.bool_, len(values))
    return np.zeros(len(values), np.bool_)


def sortable(where: str, name: str, values: Array) -> Array:
    """Return values to sort by.

    Raises:
        TaskError: they are neither numbers nor time stamps, or not one a row.
    """
    if values.ndim != 1 or values.dtype.kind not in "iufmM":
        raise TaskError(
            f"{where}: {name} is of type {values.dtype}, shape {values.shape}; expected one "
            "number or time stamp (such as 2024-05-31 07:00:00) a row"
        )
    return values


def not_numbers(where: str, name: str, cells: Iterable[object]) -> TaskError:
    """Return the error that names the first cell that is no number."""
    for row, cell in enumerate(cells):
        try:
            float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            if cell is None:
                continue  # missing, which is another matter
            if isinstance(cell, list | np.ndarray):
                return TaskError(
                    f"{where}: {name} holds lists of different lengths, such as {len(cell)} in row "
                    f"{row} (counted from 0); expected one length: pad or cut them"
                )
            text = repr(cell)
            return TaskError(
                f"{where}: {name}, row {row} (counted from 0) is "
                f"{text if len(text) <= _LONGEST_CELL else text[:_LONGEST_CELL] + '…'}; expected "
                "a number: encode it, leave the column out (data.inputs), or name it in "
                "data.missing_values if it stands for a missing cell"
            )
    return TaskError(f"{where}: {name} holds numbers as text; expected numbers: convert it")


_LONGEST_CELL = 40
