"""Windows over a sensor's readings: the same bits in training and at prediction time.

`cut_windows` cuts a recording, `Windower` cuts a stream reading by reading and survives a restart;
both give the same windows, bit for bit. The rules:

- Readings whose numbers follow each other, and whose times do within `WindowSpec.max_gap_s`,
  are one stretch. A window of `size` readings begins at its first reading and every `hop` later;
  it never reaches over two stretches.
- A reading whose number and time are not later than the last one's came again and is dropped.
- A reading that has NaN, infinity or a value too large for float32 drops the windows that it is in.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import InvalidInput, TaskError
from fedge.task import Task

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class WindowSpec:
    """How readings become windows ``[size, C]``; part of a task, fixed before round 1.

    Attributes:
        size: readings in a window.
        hop: readings from the start of one window to that of the next.
        mean, scale: one a channel, subtracted and divided by. Public constants: from the
            sensor's data sheet or from proxy data, never from devices.
        max_gap_s: readings further apart do not belong to one window.
    """

    size: int
    hop: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    max_gap_s: float = math.inf

    def __post_init__(self) -> None:
        """Refuse sizes and constants that make no windows."""
        if self.size < 1 or self.hop < 1:
            raise TaskError(f"windows: size and hop must be >= 1, got {self.size}, {self.hop}")
        if len(self.mean) != len(self.scale) or not self.mean:
            raise TaskError(f"windows: {len(self.mean)} means but {len(self.scale)} scales")
        if not np.isfinite([*self.mean, *self.scale]).all() or min(self.scale) <= 0:
            raise TaskError("windows: means must be finite and scales finite and > 0")
        if not self.max_gap_s > 0:
            raise TaskError(f"windows: max_gap_s must be > 0, got {self.max_gap_s}")

    @property
    def num_channels(self) -> int:
        """C, the values of one reading."""
        return len(self.mean)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the specification."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the specification as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> WindowSpec:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return WindowSpec(**{**values, **{key: tuple(values[key]) for key in ("mean", "scale")}})

    def normalise(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return values ``[..., C]`` as the model sees them; each by itself, in float32."""
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = np.array(self.mean, np.float32), np.array(self.scale, np.float32)
            rows: npt.NDArray[np.float32] = (np.asarray(values, np.float32) - mean) / scale
        return rows


def window_spec_of(task: Task) -> WindowSpec | None:
    """Return how a task cuts readings: what its method ``window_spec()`` says, None without one.

    Raises:
        TaskError: it is no `WindowSpec`, or its windows are not the task's inputs.
    """
    make = getattr(task, "window_spec", None)
    if make is None:
        return None
    spec = make()
    if not isinstance(spec, WindowSpec):
        raise TaskError(f"window_spec() of task {task.name} returned a {type(spec).__name__}")
    shape = (spec.size, spec.num_channels)
    if shape != tuple(task.input_shape):
        raise TaskError(
            f"task {task.name} takes inputs {list(task.input_shape)}, its windows are {list(shape)}"
        )
    return spec


@dataclass(frozen=True)
class Readings:
    """Readings of one source, in the order in which they came.

    Attributes:
        values: ``[N, C]``.
        sequences: ``[N]``, whole numbers that grow by one.
        times_s: ``[N]``, seconds since any epoch, finite.
    """

    values: Array
    sequences: npt.NDArray[np.int64]
    times_s: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if self.values.ndim != 2 or not (
            self.sequences.shape == self.times_s.shape == self.values.shape[:1]
        ):
            raise InvalidInput(
                f"readings: expected values [N, C], sequences [N] and times [N], got "
                f"{list(self.values.shape)}, {list(self.sequences.shape)} and "
                f"{list(self.times_s.shape)}"
            )
        if not np.isfinite(self.times_s).all():
            raise InvalidInput("readings: a time is not finite")

    def __len__(self) -> int:
        """Return N."""
        return len(self.values)


@dataclass(frozen=True)
class Window:
    """One window.

    Attributes:
        inputs: ``[size, C]`` float32, normalised.
        first: number of its first reading.
        end_s: time of its last reading.
        run: how often the source had begun to number anew, or the specification was another.
    """

    inputs: npt.NDArray[np.float32]
    first: int
    end_s: float
    run: int = 0


@dataclass
class WindowCounts:
    """What became of readings.

    Attributes:
        windows: windows cut.
        dropped: windows dropped because a reading in them was not finite.
        bad: readings that were not finite.
        repeated: readings that came again.
        gaps: places where a stretch ended and another began.
    """

    windows: int = 0
    dropped: int = 0
    bad: int = 0
    repeated: int = 0
    gaps: int = 0


class Windower:
    """Cuts one source's stream; not safe across threads."""

    def __init__(self, spec: WindowSpec) -> None:
        self.spec = spec
        self.counts = WindowCounts()
        self._ring = np.zeros((spec.size, spec.num_channels), np.float32)
        self._length = 0  # readings of this stretch
        self._last_bad = -1  # position of the last bad one in this stretch
        self._last: tuple[int, float] | None = None  # number and time
        self._run = 0

    def push(self, readings: Readings) -> list[Window]:
        """Take readings in order; returns the windows that they complete.

        Raises:
            InvalidInput: the number of channels is another one.
        """
        _check_channels(readings, self.spec)
        rows = self.spec.normalise(readings.values)
        found = []
        for row, sequence, time_s in zip(
            rows, readings.sequences.tolist(), readings.times_s.tolist(), strict=True
        ):
            if self._follows(sequence, time_s):
                window = self._take(row)
                found += [] if window is None else [window]
        return found

    def to_bytes(self) -> bytes:
        """Return everything that `from_bytes` needs to go on."""
        header = {
            "spec": self.spec.digest,
            "length": self._length,
            "last_bad": self._last_bad,
            "last": self._last,
            "run": self._run,
            "counts": asdict(self.counts),
        }
        return json.dumps(header).encode() + b"\n" + self._ring.astype("<f4").tobytes()

    @property
    def next_sequence(self) -> int:
        """Number of the reading to go on with; 0 before the first."""
        return 0 if self._last is None else self._last[0] + 1

    @staticmethod
    def from_bytes(spec: WindowSpec, content: bytes) -> Windower:
        """Return a windower that goes on where the other was; of another spec it starts anew.

        It then counts as one more run: nobody takes its windows for those cut before.
        """
        windower = Windower(spec)
        line, _, ring = content.partition(b"\n")
        header = json.loads(line)
        windower._run = header["run"] + 1
        if header["spec"] == spec.digest:
            windower._ring = np.frombuffer(ring, "<f4").reshape(windower._ring.shape).copy()
            windower._length, windower._last_bad = header["length"], header["last_bad"]
            windower._last = None if header["last"] is None else tuple(header["last"])
            windower._run = header["run"]
            windower.counts = WindowCounts(**header["counts"])
        return windower

    def _follows(self, sequence: int, time_s: float) -> bool:
        """Tell whether a reading is new, and begin a stretch where it does not join the last."""
        if self._last is not None:
            last_sequence, last_s = self._last
            if sequence <= last_sequence and time_s <= last_s:
                self.counts.repeated += 1
                return False
            if sequence != last_sequence + 1 or not 0 <= time_s - last_s <= self.spec.max_gap_s:
                self._length, self._last_bad = 0, -1
                self.counts.gaps += 1
                self._run += sequence <= last_sequence
        self._last = sequence, time_s
        return True

    def _take(self, row: npt.NDArray[np.float32]) -> Window | None:
        """Keep the reading that is now the last; returns the window that it ends."""
        size = self.spec.size
        if not np.isfinite(row).all():
            self._last_bad = self._length
            self.counts.bad += 1
        self._ring[self._length % size] = row
        self._length += 1
        start = self._length - size
        if start < 0 or start % self.spec.hop:
            return None
        if self._last_bad >= start:
            self.counts.dropped += 1
            return None
        assert self._last is not None
        self.counts.windows += 1
        inputs = np.roll(self._ring, -(self._length % size), axis=0)
        return Window(inputs, self._last[0] - size + 1, self._last[1], self._run)


@dataclass(frozen=True)
class Cut:
    """The windows of a recording.

    Attributes:
        inputs: ``[W, size, C]`` float32, normalised.
        last: ``[W]``, position of each window's last reading in the recording.
        runs: ``[W]``, as `Window.run`.
        counts: what became of the readings.
    """

    inputs: npt.NDArray[np.float32]
    last: npt.NDArray[np.int64]
    runs: npt.NDArray[np.int64]
    counts: WindowCounts


def cut_windows(readings: Readings, spec: WindowSpec) -> Cut:
    """Cut a whole recording; the windows are those that a `Windower` gives, in order.

    Raises:
        InvalidInput: the number of channels is another one.
    """
    _check_channels(readings, spec)
    kept = _new_readings(readings.sequences, readings.times_s)
    rows = spec.normalise(readings.values[kept])
    steps, seconds = np.diff(readings.sequences[kept]), np.diff(readings.times_s[kept])
    joined = (steps == 1) & (seconds >= 0) & (seconds <= spec.max_gap_s)
    begins = np.concatenate(([0], np.flatnonzero(~joined) + 1))
    ends = np.append(begins[1:], len(kept))
    starts = np.concatenate(
        [np.arange(b, e - spec.size + 1, spec.hop) for b, e in zip(begins, ends, strict=True)]
    )
    bad = ~np.isfinite(rows).all(axis=1)
    bad_before = np.concatenate(([0], np.cumsum(bad)))
    whole = starts[bad_before[starts + spec.size] == bad_before[starts]]
    runs = np.concatenate(([0], np.cumsum(steps <= 0)))
    last = whole + spec.size - 1
    return Cut(
        inputs=rows[whole[:, None] + np.arange(spec.size)],
        last=kept[last],
        runs=runs[last],
        counts=WindowCounts(
            windows=len(whole),
            dropped=len(starts) - len(whole),
            bad=int(bad.sum()),
            repeated=len(readings) - len(kept),
            gaps=len(begins) - 1,
        ),
    )


def _new_readings(
    sequences: npt.NDArray[np.int64], times_s: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the positions of the readings that did not come again."""
    if ((np.diff(sequences) > 0) | (np.diff(times_s) > 0)).all():
        return np.arange(len(sequences))
    kept: list[int] = []
    for position in range(len(sequences)):
        last = kept[-1] if kept else None
        if (
            last is None
            or sequences[position] > sequences[last]
            or times_s[position] > times_s[last]
        ):
            kept.append(position)
    return np.array(kept, np.int64)


def _check_channels(readings: Readings, spec: WindowSpec) -> None:
    if readings.values.shape[1] != spec.num_channels:
        raise InvalidInput(
            f"readings: expected {spec.num_channels} channels, got {readings.values.shape[1]}"
        )
