"""Reading a device's samples, in the process that writes them or in another."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.array_columns import empty_rows, unpack
from edge_client.database import mapped_errors, open_read_only
from edge_client.sample_schema import MIGRATIONS
from edge_client.sequences import SeenSequences, read_sources
from edge_client.settings import StoreConfig
from fedge.closing import Closing
from fedge.task import Examples, Split

log = logging.getLogger(__name__)

Clock = Callable[[], float]

ROWS_AT_A_TIME = 256

_SHAPES = "input_dtype, input_shape, target_dtype, target_shape"
_IN_SPLIT = "target IS NOT NULL AND added_at >= ? AND split_position >= ? AND split_position < ?"


@dataclass(frozen=True)
class StoredSample:
    """One sample as it is stored.

    Attributes:
        added_at: seconds since 1970.
        target: None where nobody has labelled it.
    """

    sample_id: str
    added_at: float
    split: Split
    input: npt.NDArray[Any]
    target: npt.NDArray[Any] | None


@dataclass(frozen=True)
class StoreFigures:
    """What a sample database holds and has seen.

    Attributes:
        labelled, unlabelled: samples stored.
        size_bytes: what they take; `max_bytes` bounds it.
        waiting_labels: labels whose sample has not come.
        offered: samples that ever got a label.
        duplicates: samples dropped because they had come before.
        sources: what each numbered source has sent, by name.
    """

    labelled: int
    unlabelled: int
    size_bytes: int
    waiting_labels: int
    offered: int
    duplicates: int
    sources: dict[str, SeenSequences]

    def snapshot(self) -> dict[str, float]:
        """Return what the metrics page shows of it."""
        return {
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "bytes": self.size_bytes,
            "waiting_labels": self.waiting_labels,
            "duplicates_total": self.duplicates,
        }


def split_position(sample_id: str) -> float:
    """Return where an id lies in [0, 1): below the holdout fraction it is held out for ever."""
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:6], "big") / 2**48


class SampleReader(Closing):
    """Reads a sample database, in the process that writes it or in another.

    Raises:
        StoreError: the file is not there or cannot be read; any method may raise it too.
    """

    def __init__(self, path: Path, config: StoreConfig, clock: Clock = time.time) -> None:
        self._path = path
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = open_read_only(path, len(MIGRATIONS))

    def labelled(self, split: Split) -> Examples:
        """Return the labelled samples of one split, oldest first.

        Examples of one call have one shape: samples whose shape or dtype is not that of the
        newest labelled sample are passed over, and so are damaged ones. Both are logged.
        """
        border = self._config.holdout_fraction
        low, high = (0.0, border) if split == "holdout" else (border, 1.0)
        oldest = self._clock() - self._config.max_age_s
        with self._lock, mapped_errors(self._path):
            newest = self._connection.execute(
                f"SELECT {_SHAPES} FROM samples WHERE target IS NOT NULL AND added_at >= ? "
                "ORDER BY sequence DESC LIMIT 1",
                (oldest,),
            ).fetchone()
            rows = self._connection.execute(
                "SELECT input_dtype, input_shape, input, input_crc, target_dtype, target_shape, "
                f"target, target_crc FROM samples WHERE {_IN_SPLIT} ORDER BY sequence",
                (oldest, low, high),
            ).fetchall()
        return _stack(rows, newest)

    def all(self) -> Iterator[StoredSample | None]:
        """Return every sample, oldest first; None in place of a damaged one.

        Rows are read a few at a time: what is added or removed meanwhile may or may not be seen.
        """
        oldest, after = self._clock() - self._config.max_age_s, 0
        while True:
            with self._lock, mapped_errors(self._path):
                rows = self._connection.execute(
                    "SELECT sequence, id, added_at, split_position, input_dtype, input_shape, "
                    "input, input_crc, target_dtype, target_shape, target, target_crc "
                    "FROM samples WHERE sequence > ? AND added_at >= ? ORDER BY sequence LIMIT ?",
                    (after, oldest, ROWS_AT_A_TIME),
                ).fetchall()
            yield from (self._read_sample(row[1:]) for row in rows)
            if len(rows) < ROWS_AT_A_TIME:
                return
            after = rows[-1][0]

    def _read_sample(self, row: tuple[Any, ...]) -> StoredSample | None:
        sample_id, added_at, position, *columns = row
        split: Split = "holdout" if position < self._config.holdout_fraction else "train"
        inputs = unpack(columns[:4])
        target = None if columns[4] is None else unpack(columns[4:])
        if inputs is None or (target is None and columns[4] is not None):
            return None
        return StoredSample(sample_id, added_at, split, inputs, target)

    def counts(self) -> tuple[int, int]:
        """Return how many samples are labelled and how many are not."""
        with self._lock, mapped_errors(self._path):
            total, labelled = self._connection.execute(
                "SELECT count(*), count(target_dtype) FROM samples WHERE added_at >= ?",
                (self._clock() - self._config.max_age_s,),
            ).fetchone()
        return labelled, total - labelled

    def figures(self) -> StoreFigures:
        """Return what is stored and what has been."""
        labelled, unlabelled = self.counts()
        with self._lock, mapped_errors(self._path):
            size_bytes, offered, duplicates, waiting = self._connection.execute(
                "SELECT size_bytes, offered, duplicates, "
                "(SELECT count(*) FROM waiting_labels) FROM totals"
            ).fetchone()
            sources = read_sources(self._connection)
        return StoreFigures(labelled, unlabelled, size_bytes, waiting, offered, duplicates, sources)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


def _stack(rows: list[tuple[Any, ...]], newest: tuple[str, ...] | None) -> Examples:
    """Return the rows that are whole and shaped like the newest, as arrays."""
    if newest is None:
        return Examples(np.zeros(0, np.float32), np.zeros(0, np.int64))
    input_like, target_like = newest[:2], newest[2:]
    alike = [row for row in rows if (row[:2], row[4:6]) == (input_like, target_like)]
    pairs = [(unpack(row[:4]), unpack(row[4:])) for row in alike]
    whole = [(i, t) for i, t in pairs if i is not None and t is not None]
    if len(alike) < len(rows):
        log.warning(
            "%d of %d labelled samples are passed over: not shaped like the newest "
            "(input %s %s, target %s %s)",
            len(rows) - len(alike),
            len(rows),
            *newest,
        )
    if len(whole) < len(alike):
        log.warning("%d labelled samples are damaged and passed over", len(alike) - len(whole))
    inputs = empty_rows(newest[0], newest[1], len(whole))
    targets = empty_rows(newest[2], newest[3], len(whole))
    for index, (one_input, one_target) in enumerate(whole):
        inputs[index], targets[index] = one_input, one_target
    return Examples(inputs, targets)
