"""The device's own samples, in one SQLite file that never leaves the device.

A sample is an input with an id, and a target once somebody labels it. The database is bounded in
bytes and age; the oldest samples go first.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy.typing as npt

from edge_client.array_columns import ArrayColumns, pack
from edge_client.database import mapped_errors, open_database, transaction
from edge_client.sample_reader import MIGRATIONS, Clock, SampleReader, split_position
from edge_client.settings import StoreConfig
from fedge.closing import Closing
from fedge.errors import InvalidSample, UnknownSample
from fedge.task import Examples, Split

MAX_ID_BYTES = 256
ROW_OVERHEAD_BYTES = 128  # what SQLite and the other columns take, roughly


class SampleDatabase(Closing):
    """The one writer of a device's samples; safe across threads.

    What a method has returned from survives a kill and a power cut.

    Args:
        path: the file; made if it is missing.
        config: bounds and the held-out share. A larger share later moves samples that were
            trained on into the holdout.
        clock: seconds since 1970, for the bound in age.

    Raises:
        StoreError: the file cannot be used; any method may raise it too.
    """

    def __init__(self, path: Path, config: StoreConfig, clock: Clock = time.time) -> None:
        self._path = path
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = open_database(path, MIGRATIONS)
        self._reader = SampleReader(path, config, clock)
        with self._lock, mapped_errors(path), transaction(self._connection):
            self._remove_expired()
            self._remove_oldest()

    def add(
        self, sample_id: str, inputs: npt.ArrayLike, target: npt.ArrayLike | None = None
    ) -> None:
        """Keep a sample; one whose id is known keeps its first input and takes a given target.

        So a sample that is delivered twice is kept once.

        Args:
            sample_id: unique on this device; also decides the split.
            inputs: one example, without batch dimension; floats are kept as float32, whole
                numbers as int64.
            target: its label, if it is known already.

        Raises:
            InvalidSample: the id is empty or too long; a value is not a finite number; or the
                sample alone is larger than the whole database may be.
        """
        _check_id(sample_id)
        packed = pack(inputs, f"sample {sample_id!r}: input")
        label = None if target is None else pack(target, f"sample {sample_id!r}: target")
        size = ROW_OVERHEAD_BYTES + len(sample_id.encode()) + packed.size_bytes
        row = (sample_id, split_position(sample_id), self._clock(), size, *packed.values)
        with self._lock, mapped_errors(self._path), transaction(self._connection):
            self._remove_expired()
            self._connection.execute(
                "INSERT INTO samples (id, split_position, added_at, size_bytes, input_dtype, "
                "input_shape, input, input_crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO NOTHING",
                row,
            )
            if label is not None:
                self._set_target(sample_id, label)
            self._make_room(sample_id)

    def label(self, sample_id: str, target: npt.ArrayLike) -> None:
        """Give a sample its target, or another one.

        Raises:
            UnknownSample: there is no such sample (any more).
            InvalidSample: the target is not a finite number, or the sample gets too large.
        """
        label = pack(target, f"sample {sample_id!r}: target")
        with self._lock, mapped_errors(self._path), transaction(self._connection):
            self._remove_expired()
            if not self._set_target(sample_id, label):
                raise UnknownSample(
                    f"no sample {sample_id!r} is stored: it was never added, or it made room for "
                    "newer ones (store.max_bytes, store.max_age_s)"
                )
            self._make_room(sample_id)

    def labelled(self, split: Split) -> Examples:
        """Return the labelled samples of one split; see `SampleReader.labelled`."""
        return self._reader.labelled(split)

    def counts(self) -> tuple[int, int]:
        """Return how many samples are labelled and how many are not."""
        return self._reader.counts()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        with self._lock:
            self._connection.close()

    def _set_target(self, sample_id: str, label: ArrayColumns) -> bool:
        changed = self._connection.execute(
            "UPDATE samples SET size_bytes = size_bytes - ifnull(length(target), 0) + ?, "
            "target_dtype = ?, target_shape = ?, target = ?, target_crc = ? WHERE id = ?",
            (label.size_bytes, *label.values, sample_id),
        )
        return changed.rowcount > 0

    def _make_room(self, sample_id: str) -> None:
        """Remove the oldest, or undo the step for a sample too large alone."""
        row = self._connection.execute("SELECT size_bytes FROM samples WHERE id = ?", (sample_id,))
        (size_bytes,) = row.fetchone()
        if size_bytes > self._config.max_bytes:
            raise InvalidSample(
                f"sample {sample_id!r} takes {size_bytes} bytes and the whole store may take "
                f"{self._config.max_bytes}: raise store.max_bytes"
            )
        self._remove_oldest()

    def _remove_expired(self) -> None:
        oldest = self._clock() - self._config.max_age_s
        self._connection.execute("DELETE FROM samples WHERE added_at < ?", (oldest,))

    def _remove_oldest(self) -> None:
        """Remove the oldest until the rest fits."""
        while self._size_bytes() > self._config.max_bytes:
            self._connection.execute(
                "DELETE FROM samples WHERE sequence = (SELECT min(sequence) FROM samples)"
            )

    def _size_bytes(self) -> int:
        return int(self._connection.execute("SELECT size_bytes FROM totals").fetchone()[0])


def _check_id(sample_id: str) -> None:
    try:
        length = len(sample_id.encode())
    except UnicodeEncodeError as error:
        raise InvalidSample("a sample id is not valid text") from error
    if not 1 <= length <= MAX_ID_BYTES:
        raise InvalidSample(f"a sample id must have 1 to {MAX_ID_BYTES} bytes, got {length}")
