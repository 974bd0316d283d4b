"""The device's own samples, in one SQLite file that never leaves the device.

A sample is an input with an id, and a target once somebody labels it. The database is bounded in
bytes and age; `edge_client.retention` says what goes first.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt

from edge_client.array_columns import ArrayColumns, pack
from edge_client.database import mapped_errors, open_database, transaction
from edge_client.group_commit import GroupCommit
from edge_client.retention import LABELLED_SHARE, RETENTIONS, draw_number
from edge_client.sample_reader import Clock, SampleReader, StoreFigures, split_position
from edge_client.sample_schema import MIGRATIONS
from edge_client.sequences import MAX_SEQUENCE, SourceBook
from edge_client.settings import StoreConfig
from edge_client.waiting_labels import WaitingLabels
from fedge.closing import Closing
from fedge.errors import InvalidSample, UnknownSample
from fedge.task import Examples, Split

log = logging.getLogger(__name__)

MAX_ID_BYTES = 256
MAX_STREAMS = 256
ROW_OVERHEAD_BYTES = 128  # what SQLite and the other columns take, roughly


@dataclass(frozen=True)
class PreparedSample:
    """A sample that was checked and can be stored; `SampleDatabase.prepare` makes it."""

    sample_id: str
    input: ArrayColumns
    target: ArrayColumns | None
    source: str
    sequence: int | None

    @property
    def size_bytes(self) -> int:
        """What it takes without its target."""
        return ROW_OVERHEAD_BYTES + len(self.sample_id.encode()) + self.input.size_bytes


class SampleDatabase(Closing):
    """The one writer of a device's samples; safe across threads.

    What a method has returned from survives a kill and a power cut.

    Args:
        path: the file; made if it is missing.
        config: bounds and the held-out share. A larger share later moves samples that were
            trained on into the holdout.
        clock: seconds since 1970, for the bound in age.
        draw: numbers uniform in [0, 1) that decide what a reservoir keeps.

    Raises:
        StoreError: the file cannot be used; any method may raise it too.
    """

    def __init__(
        self,
        path: Path,
        config: StoreConfig,
        clock: Clock = time.time,
        draw: Callable[[], float] = draw_number,
    ) -> None:
        self._path = path
        self._config = config
        self._clock = clock
        self._draw = draw
        self._retention = RETENTIONS[config.retention]()
        self._lock = threading.Lock()
        self._connection = open_database(path, MIGRATIONS)
        self._waiting = WaitingLabels(self._connection, config.max_bytes)
        self._reader = SampleReader(path, config, clock)
        self._together: GroupCommit[PreparedSample, bool] = GroupCommit(self.add_many)
        with self._lock, mapped_errors(path), transaction(self._connection):
            self._remove_expired()
            self._make_room("")

    def add(
        self,
        sample_id: str,
        inputs: npt.ArrayLike,
        target: npt.ArrayLike | None = None,
        *,
        source: str = "",
        sequence: int | None = None,
    ) -> bool:
        """Keep a sample; returns whether it is new. See `prepare` and `add_many`.

        What several threads add at once is committed together.
        """
        sample = self.prepare(sample_id, inputs, target, source=source, sequence=sequence)
        return self._together.submit(sample)

    def prepare(
        self,
        sample_id: str,
        inputs: npt.ArrayLike,
        target: npt.ArrayLike | None = None,
        *,
        source: str = "",
        sequence: int | None = None,
    ) -> PreparedSample:
        """Check a sample for `add_many`; nothing is stored yet.

        Args:
            sample_id: unique on this device; also decides the split.
            inputs: one example, without batch dimension; floats are kept as float32, whole
                numbers as int64.
            target: its label, if it is known already.
            source: who numbers the samples, such as a topic. One whose numbers begin anew needs
                a new name.
            sequence: the sample's number there, from 0; None has none.

        Raises:
            InvalidSample: the id or source is empty or too long; a number is out of range; a
                value is not finite; or the sample alone is larger than the whole database may be.
        """
        _check_text(sample_id, "a sample id")
        if sequence is not None:
            _check_text(source, "a source")
            if not 0 <= sequence <= MAX_SEQUENCE:
                raise InvalidSample(f"sample {sample_id!r}: sequence {sequence} is out of range")
        packed = pack(inputs, f"sample {sample_id!r}: input")
        label = None if target is None else pack(target, f"sample {sample_id!r}: target")
        sample = PreparedSample(sample_id, packed, label, source, sequence)
        self._check_size(sample_id, sample.size_bytes + (label.size_bytes if label else 0))
        return sample

    def add_many(
        self, samples: Sequence[PreparedSample], states: Mapping[str, bytes] | None = None
    ) -> list[bool]:
        """Keep samples in one step, which costs one wait for the disk; tells which are new.

        A sample whose number came from its source before is dropped and counted. One whose id
        is stored keeps its first input and takes a given target. New is also what the retention
        does not keep.

        Args:
            samples: what `prepare` returned.
            states: what the streams that the samples came from need to go on, by source; kept
                in the same step, of the `MAX_STREAMS` written last.
        """
        with self._lock, mapped_errors(self._path), transaction(self._connection):
            self._remove_expired()
            book = SourceBook(self._connection)
            added = [self._add(sample, book) for sample in samples]
            book.save()
            self._keep_states(states or {})
            self._connection.execute(
                "UPDATE totals SET duplicates = duplicates + ?", (added.count(False),)
            )
        return added

    def label(self, sample_id: str, target: npt.ArrayLike, *, wait: bool = False) -> bool:
        """Give a sample its target, or another one; returns whether it is stored.

        Args:
            sample_id: the sample's.
            target: its label.
            wait: keep the label of a sample that is not stored until it comes; the oldest of
                those labels make room for newer ones.

        Raises:
            UnknownSample: there is no such sample (any more), and the label is not to wait.
            InvalidSample: the target is not a finite number, or the sample gets too large.
        """
        _check_text(sample_id, "a sample id")
        label = pack(target, f"sample {sample_id!r}: target")
        with self._lock, mapped_errors(self._path), transaction(self._connection):
            self._remove_expired()
            if self._set_target(sample_id, label):
                self._make_room(sample_id)
                return True
            if wait:
                self._waiting.put(sample_id, label, self._clock())
                return False
            raise UnknownSample(
                f"no sample {sample_id!r} is stored: it was never added, or it made room for "
                "others (store.max_bytes, store.max_age_s, store.retention)"
            )

    def stream_states(self) -> dict[str, bytes]:
        """Return what `add_many` was given last, by source, the one written last at the end."""
        query = "SELECT source, state FROM stream_states ORDER BY written"
        with self._lock, mapped_errors(self._path):
            return dict(self._connection.execute(query))

    def labelled(self, split: Split) -> Examples:
        """Return the labelled samples of one split; see `SampleReader.labelled`."""
        return self._reader.labelled(split)

    def counts(self) -> tuple[int, int]:
        """Return how many samples are labelled and how many are not."""
        return self._reader.counts()

    def figures(self) -> StoreFigures:
        """Return what is stored and what has been; see `SampleReader.figures`."""
        return self._reader.figures()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        with self._lock:
            self._connection.close()

    def _add(self, sample: PreparedSample, book: SourceBook) -> bool:
        if sample.sequence is not None and not book.note(sample.source, sample.sequence):
            return False
        sample_id = sample.sample_id
        row = (sample_id, split_position(sample_id), self._clock(), sample.size_bytes)
        inserted = self._connection.execute(
            "INSERT INTO samples (id, split_position, added_at, size_bytes, input_dtype, "
            "input_shape, input, input_crc, draw) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO NOTHING",
            (*row, *sample.input.values, self._draw()),
        )
        waiting = self._waiting.take(sample_id)
        label = sample.target or waiting
        if label is not None:
            try:
                self._set_target(sample_id, label)
            except InvalidSample as error:  # its stored input or its waiting label is larger
                log.warning("a label is left out: %s", error)
        self._make_room(sample_id)
        return inserted.rowcount > 0

    def _keep_states(self, states: Mapping[str, bytes]) -> None:
        for source, state in states.items():
            self._connection.execute(
                "INSERT OR REPLACE INTO stream_states SELECT ?, ?, 1 + ifnull(max(written), 0) "
                "FROM stream_states",
                (source, state),
            )
        if states:
            self._connection.execute(
                "DELETE FROM stream_states WHERE source IN (SELECT source FROM stream_states "
                "ORDER BY written DESC LIMIT -1 OFFSET ?)",
                (MAX_STREAMS,),
            )

    def _set_target(self, sample_id: str, label: ArrayColumns) -> bool:
        """Set a stored sample's target; a reservoir may then let the sample go."""
        row = self._connection.execute(
            "SELECT size_bytes - ifnull(length(target), 0), target_dtype, draw FROM samples "
            "WHERE id = ?",
            (sample_id,),
        ).fetchone()
        if row is None:
            return False
        size_bytes, known_dtype, draw = row
        self._check_size(sample_id, size_bytes + label.size_bytes)
        if known_dtype is None:
            self._connection.execute("UPDATE totals SET offered = offered + 1")
            if not self._retention.admits(self._connection, draw):
                self._connection.execute("DELETE FROM samples WHERE id = ?", (sample_id,))
                return True
        self._connection.execute(
            "UPDATE samples SET size_bytes = ?, target_dtype = ?, target_shape = ?, target = ?, "
            "target_crc = ? WHERE id = ?",
            (size_bytes + label.size_bytes, *label.values, sample_id),
        )
        return True

    def _check_size(self, sample_id: str, size_bytes: int) -> None:
        if size_bytes > self._config.max_bytes:
            raise InvalidSample(
                f"sample {sample_id!r} takes {size_bytes} bytes and the whole store may take "
                f"{self._config.max_bytes}: raise store.max_bytes"
            )

    def _remove_expired(self) -> None:
        oldest = self._clock() - self._config.max_age_s
        expired = self._connection.execute("DELETE FROM samples WHERE added_at < ?", (oldest,))
        self._waiting.remove_before(oldest)
        if expired.rowcount:
            self._retention.after_expiry(self._connection, self._config.max_bytes)

    def _make_room(self, keep: str) -> None:
        """Remove samples until the rest fits, the one of this id last."""
        while True:
            size_bytes, labelled_bytes = self._connection.execute(
                "SELECT size_bytes, labelled_bytes FROM totals"
            ).fetchone()
            if size_bytes <= self._config.max_bytes:
                return
            finders = [self._oldest_unlabelled, self._retention.next_to_go]
            if labelled_bytes > LABELLED_SHARE * self._config.max_bytes:
                finders.reverse()
            found = (finder(self._connection, keep) for finder in finders)
            sequence = next(each for each in found if each is not None)
            self._connection.execute("DELETE FROM samples WHERE sequence = ?", (sequence,))

    @staticmethod
    def _oldest_unlabelled(connection: sqlite3.Connection, keep: str) -> int | None:
        row = connection.execute(
            "SELECT sequence FROM samples WHERE target_dtype IS NULL AND id != ? "
            "ORDER BY sequence LIMIT 1",
            (keep,),
        ).fetchone()
        return None if row is None else int(row[0])


def _check_text(text: str, what: str) -> None:
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidSample(f"{what} is not valid text") from error
    if not 1 <= length <= MAX_ID_BYTES:
        raise InvalidSample(f"{what} must have 1 to {MAX_ID_BYTES} bytes, got {length}")
