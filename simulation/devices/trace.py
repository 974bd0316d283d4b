"""Availability from a CSV file of intervals."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from simulation.devices.hashing import ClientDraws, Floats, Ids
from simulation.devices.settings import AvailabilityConfig

_COLUMNS = ("client", "start_s", "end_s")
_KEY = "devices.availability.trace"

Row = tuple[int, float, float, int]
"""Client, start, end, and the line of the file."""


class Trace:
    """Clients that are there in the intervals of a file, over and over with its period.

    Client ``c`` follows client number ``c mod n`` of the ``n`` in the file, in order of their ids.
    Intervals that touch are one, across the end of the period too.

    Raises:
        ConfigError: the file cannot be used; names the line.
    """

    def __init__(self, config: AvailabilityConfig, draws: ClientDraws) -> None:
        del draws
        if config.trace is None:
            raise ConfigError("is missing: availability 'trace' needs a CSV file", key=_KEY)
        rows = _joined(config.trace, sorted(_rows(config.trace)))
        if not rows:
            raise ConfigError(f"{config.trace} has no intervals", key=_KEY)
        latest = max(end for _, _, end, _ in rows)
        self._period_s = config.trace_period_s or latest
        if latest > self._period_s:
            raise ConfigError(
                f"must be 0 or at least the last end_s of {config.trace}, {latest:g}, "
                f"got {config.trace_period_s:g}",
                key="devices.availability.trace_period_s",
            )
        ids = np.array([client for client, *_ in rows], np.int64)
        _, first, owner = np.unique(ids, return_index=True, return_inverse=True)
        self._first = first  # row at which each client's intervals begin, and their end
        self._num_rows = np.diff(np.append(first, len(rows)))
        self._starts = np.array([start for _, start, _, _ in rows])
        self._ends = np.array([end for _, _, end, _ in rows])
        # Complex numbers are ordered by the real part, then the imaginary one: by client, then
        # start, with no rounding.
        self._order = owner + 1j * self._starts
        self._round_the_clock = (
            (self._num_rows == 1)
            & (self._starts[first] == 0)
            & (self._ends[first] == self._period_s)
        )

    def until(self, clients: Ids, at_s: float) -> Floats:
        """Return when the window ends that each client is in; ``at_s`` where it is in none."""
        period, into = divmod(at_s, self._period_s)
        who = clients % len(self._first)
        row = self._row(who, into)
        inside = row >= self._first[who]
        inside[inside] = into < self._ends[row[inside]]
        end: Floats = self._ends[row]
        first = self._first[who]
        wraps = (end == self._period_s) & (self._starts[first] == 0)
        end = end + np.where(wraps, self._ends[first], 0.0)
        end = np.where(inside, np.maximum(period * self._period_s + end, at_s), at_s)
        end[self._round_the_clock[who]] = np.inf
        return end

    def next_start(self, clients: Ids, at_s: float) -> Floats:
        """Return when each client's next window begins; infinity where its only one never ends."""
        period, into = divmod(at_s, self._period_s)
        who = clients % len(self._first)
        row = self._row(who, into) + 1
        beyond = row >= self._first[who] + self._num_rows[who]
        row = np.where(beyond, self._first[who], row)
        start: Floats = self._starts[row] + (period + beyond) * self._period_s
        start[self._round_the_clock[who]] = np.inf
        return start

    def _row(self, who: npt.NDArray[np.int64], into: float) -> npt.NDArray[np.intp]:
        """Return the last row of each client that begins by then; the row before, if none does."""
        return np.searchsorted(self._order, who + 1j * into, side="right") - 1


def _rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path}, line 1: must have the columns {', '.join(_COLUMNS)}; "
                    f"missing: {', '.join(missing)}",
                    key=_KEY,
                )
            for row in reader:
                yield _row(path, row, reader.line_num)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key=_KEY) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is not a CSV file in UTF-8: {error}", key=_KEY) from error


def _row(path: Path, row: dict[str, str | None], line: int) -> Row:
    texts = [row[name] for name in _COLUMNS]
    try:
        client, start, end = int(texts[0] or ""), float(texts[1] or ""), float(texts[2] or "")
    except ValueError:
        found = ",".join("" if text is None else text for text in texts)
        raise ConfigError(
            f"{path}, line {line}: must be a whole number and two numbers, got {found!r}", key=_KEY
        ) from None
    if client < 0 or client >= 1 << 63 or not 0 <= start < end < math.inf:
        raise ConfigError(
            f"{path}, line {line}: must have client >= 0 and 0 <= start_s < end_s, "
            f"got {client},{start:g},{end:g}",
            key=_KEY,
        )
    return client, start, end, line


def _joined(path: Path, rows: list[Row]) -> list[Row]:
    """Return sorted rows with those that touch made one; refuses those that overlap."""
    joined: list[Row] = []
    for row in rows:
        client, start, end, line = row
        if not joined or joined[-1][0] != client or joined[-1][2] < start:
            joined.append(row)
            continue
        _, before, until, line_before = joined[-1]
        if start < until:
            raise ConfigError(
                f"{path}, line {line}: overlaps line {line_before}: client {client} is there "
                f"from {before:g} to {until:g} already",
                key=_KEY,
            )
        joined[-1] = (client, before, end, line_before)
    return joined
