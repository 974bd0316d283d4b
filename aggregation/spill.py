"""Updates of one round on disk, for methods that need all of them at once."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from aggregation.contracts import ClientUpdate
from fedge.errors import AggregationError
from fedge.params import Layout


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
        self._clients: list[int] = []
        self._weights: list[float] = []
        self._map: mmap.mmap | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        except OSError as error:
            raise self._cannot("make", error) from error

    @property
    def num_examples(self) -> npt.NDArray[np.float64]:
        """Example weights, ``[N]``, in client order."""
        return np.asarray(self._weights, np.float64)[self._order()]

    def __len__(self) -> int:
        """Return N, the number of updates."""
        return len(self._clients)

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
        self._clients.append(update.client)
        self._weights.append(update.num_examples)

    def columns(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return a copy of the coordinates [start, stop) of every update, ``[N, stop - start]``."""
        if len(self) == 0 or self._layout.size == 0:
            return np.zeros((len(self), self._layout.size), np.float32)[:, start:stop]
        if self._map is None:
            length = len(self) * self._layout.size_bytes
            self._map = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_READ)
        rows = np.frombuffer(self._map, np.float32).reshape(len(self), self._layout.size)
        return rows[self._order(), start:stop]

    def close(self) -> None:
        """Give the disk space back; closing twice is fine."""
        self._unmap()
        self._file.close()

    def _order(self) -> list[int]:
        return sorted(range(len(self)), key=self._clients.__getitem__)

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
