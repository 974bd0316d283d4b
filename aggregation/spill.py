"""Updates of one round on disk, for methods that need all of them at once."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from aggregation.contracts import ClientUpdate
from fedge.errors import AggregationError
from fedge.params import Layout

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Row:
    """What is kept in memory of an update."""

    client: int
    weight: float
    discount: float
    norm: float


class SpilledUpdates:
    """Updates appended to a nameless file and read back by columns through a memory map.

    The file has no name, so that even a kill leaves nothing of a client behind. Rows are read
    in client order, whatever the order of arrival. It is an `UpdateFile`.

    Args:
        layout: of every update.
        folder: where there is room for them; made if it is missing.
    """

    def __init__(self, layout: Layout, folder: Path) -> None:
        self._layout = layout
        self._folder = folder
        self._rows: list[_Row] = []
        self._map: mmap.mmap | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        except OSError as error:
            raise self._cannot("make", error) from error

    @property
    def weights(self) -> Floats:
        """Example weights after staleness, ``[N]``, in client order."""
        return self._column(lambda row: row.weight)

    @property
    def discounts(self) -> Floats:
        """What staleness leaves of each update, ``[N]``, in client order."""
        return self._column(lambda row: row.discount)

    @property
    def norms(self) -> Floats:
        """L2 norms, ``[N]``, in client order."""
        return self._column(lambda row: row.norm)

    def __len__(self) -> int:
        """Return N, the number of updates."""
        return len(self._rows)

    def append(self, update: ClientUpdate) -> None:
        """Write one update.

        Raises:
            AggregationError: the disk does not take it.
        """
        self._unmap()
        try:
            self._file.seek(len(self) * self._layout.size_bytes)
            self._file.write(self._layout.check(update.delta).data)
            self._file.flush()
        except OSError as error:
            raise self._cannot("write", error) from error
        self._rows.append(_Row(update.client, update.weight, update.discount, update.norm))

    def columns(
        self, start: int, stop: int, chosen: npt.NDArray[np.intp] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return a copy of the coordinates [start, stop), ``[N, stop - start]``.

        Of all updates, or of those chosen by index in client order. Several threads may read at
        once: where two of them map the file, one map is dropped again.
        """
        order = np.asarray(self._order(), np.intp)
        if chosen is not None:
            order = order[chosen]
        if len(self) == 0 or self._layout.size == 0:
            return np.zeros((len(order), self._layout.size), np.float32)[:, start:stop]
        if self._map is None:
            length = len(self) * self._layout.size_bytes
            self._map = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_READ)
        rows = np.frombuffer(self._map, np.float32).reshape(len(self), self._layout.size)
        return rows[order, start:stop]

    def close(self) -> None:
        """Give the disk space back; closing twice is fine."""
        self._unmap()
        self._file.close()

    def _column(self, value: Callable[[_Row], float]) -> Floats:
        return np.asarray([value(self._rows[i]) for i in self._order()], np.float64)

    def _order(self) -> list[int]:
        return sorted(range(len(self)), key=lambda i: self._rows[i].client)

    def _unmap(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def _cannot(self, verb: str, error: OSError) -> AggregationError:
        reason: Any = error.strerror or error
        return AggregationError(
            f"cannot {verb} the round's updates in {self._folder}: {reason}; make room there or "
            "take a streaming aggregator (weighted-mean)"
        )
