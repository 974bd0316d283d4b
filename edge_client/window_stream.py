"""From a sensor's readings to predictions and stored samples, window by window.

Whoever brings readings (gRPC, MQTT) feeds them here. What is answered as stored survives a kill:
the windows and the place in the stream are committed together, so that a source that resumes
there, or sends some readings again, neither loses a window nor has one twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_client.inference import Prediction, Serving
from edge_client.sample_store import MAX_ID_BYTES, MAX_STREAMS, SampleDatabase
from fedge.errors import InvalidInput, ModelError, StoreError
from fedge.windows import Readings, Window, WindowCounts, Windower, WindowSpec

log = logging.getLogger(__name__)

MAX_SOURCE_BYTES = MAX_ID_BYTES - 48  # what run and number take of a sample's id


@dataclass(frozen=True)
class CutWindow:
    """A window, who its readings are from, and the id that its sample is stored under."""

    source: str
    window: Window

    @property
    def sample_id(self) -> str:
        """Source, its run and the number of the first reading."""
        return f"{self.source}/{self.window.run}/{self.window.first}"


@dataclass(frozen=True)
class Feed:
    """Readings of one source."""

    source: str
    readings: Readings


@dataclass(frozen=True)
class PredictedWindow:
    """A window, the id that its sample is stored under, and the answer."""

    sample_id: str
    window: Window
    prediction: Prediction


@dataclass(frozen=True)
class Fed:
    """What readings led to.

    Attributes:
        next_sequence: number of the reading to go on with.
        stored: whether all this survives a kill; if not, `WindowStream.problem` says why.
    """

    windows: list[PredictedWindow]
    next_sequence: int
    stored: bool


class WindowStream:
    """The streams of one device, told apart by their source; safe across threads.

    Args:
        load_spec: returns how the task cuts readings, None if it does not.
        serving: answers each window.
        samples: keeps windows and places.
    """

    def __init__(
        self,
        load_spec: Callable[[], WindowSpec | None],
        serving: Serving,
        samples: SampleDatabase,
    ) -> None:
        self._load_spec = load_spec
        self._serving = serving
        self._samples = samples
        self._lock = threading.Lock()
        self._spec: WindowSpec | None = None
        self._states: dict[str, bytes] = {}
        self._places_read = False
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why windows are not kept; empty if they are."""
        return self._problem

    def takes_readings(self) -> bool:
        """Load specification and places now; tells whether the task cuts windows at all.

        Raises:
            FedgeError: what ``load_spec`` raises.
        """
        with self._lock:
            try:
                self._ready()
            except ModelError:
                return False
            return True

    def feed(self, source: str, readings: Readings | None = None) -> Fed:
        """Take readings in order; predict and store the windows that they complete.

        Args:
            source: who numbers the readings.
            readings: None takes nothing and tells where to go on.

        Raises:
            InvalidInput: the source's name or the number of channels is wrong.
            ModelError: there is no model, or the task cuts no windows. Nothing is taken.
        """
        _check_source(source)
        with self._lock:
            windower = self._windower(self._ready(), source)
            if readings is None:
                return Fed([], windower.next_sequence, not self._problem)
            windows = [self._predict(source, window) for window in windower.push(readings)]
            state = windower.to_bytes()
            stored = self._store(source, windows, state)
            self._remember({source: state})
        return Fed(windows, windower.next_sequence, stored)

    def take_in(self, feeds: Sequence[Feed], keep_first: Callable[[list[CutWindow]], None]) -> int:
        """Take all readings in, or nothing: for a sender that keeps them until then.

        Returns:
            How many of them had come before, and were dropped.

        Args:
            feeds: in order.
            keep_first: called, under the lock, with the windows that they complete, before these
                are committed; and again with the same ones if a kill, or a disk that failed, comes
                between.

        Raises:
            InvalidInput: a source's name or a number of channels is wrong.
            ModelError: the task cuts no windows.
            StoreError: the windows cannot be kept.
        """
        for each in feeds:
            _check_source(each.source)
        with self._lock:
            spec = self._ready()
            if not self._places_read:
                raise StoreError(self._problem)
            windowers = {each.source: self._windower(spec, each.source) for each in feeds}
            repeated_before = _repeated(windowers)
            windows = [
                CutWindow(each.source, window)
                for each in feeds
                for window in windowers[each.source].push(each.readings)
            ]
            keep_first(windows)
            states = {source: windower.to_bytes() for source, windower in windowers.items()}
            prepare = self._samples.prepare
            samples = [prepare(each.sample_id, each.window.inputs) for each in windows]
            self._samples.add_many(samples, states)
            self._problem = ""
            self._remember(states)
            return _repeated(windowers) - repeated_before

    def spec(self) -> WindowSpec:
        """Return how the task cuts readings.

        Raises:
            ModelError: it does not.
            FedgeError: what ``load_spec`` raises.
        """
        with self._lock:
            return self._ready()

    def counts(self) -> dict[str, WindowCounts]:
        """Return what became of the readings of each source since it is known."""
        with self._lock:
            spec = self._ready()
            return {source: self._windower(spec, source).counts for source in self._states}

    def _ready(self) -> WindowSpec:
        if self._spec is None:
            spec = self._load_spec()
            if spec is None:
                raise ModelError("this task takes no readings: it has no window_spec()")
            self._spec = spec
        if not self._places_read:
            self._read_places()
        return self._spec

    def _read_places(self) -> None:
        """Read where each stream was, unless it has come further; tried again if that fails."""
        try:
            self._states = {**self._samples.stream_states(), **self._states}
        except StoreError as error:
            self._report(str(error))
        else:
            self._places_read = True

    def _remember(self, states: Mapping[str, bytes]) -> None:
        """Keep the places of the streams fed last: as many as the database does."""
        for source, state in states.items():
            self._states.pop(source, None)
            self._states[source] = state
        for oldest in list(self._states)[:-MAX_STREAMS]:
            del self._states[oldest]

    def _windower(self, spec: WindowSpec, source: str) -> Windower:
        state = self._states.get(source)
        return Windower(spec) if state is None else Windower.from_bytes(spec, state)

    def _predict(self, source: str, window: Window) -> PredictedWindow:
        sample_id = CutWindow(source, window).sample_id
        return PredictedWindow(sample_id, window, self._serving.predict(window.inputs))

    def _store(self, source: str, windows: list[PredictedWindow], state: bytes) -> bool:
        """Commit windows and place; a database that fails stops no answer."""
        try:
            samples = [self._samples.prepare(w.sample_id, w.window.inputs) for w in windows]
            self._samples.add_many(samples, {source: state})
        except StoreError as error:
            self._report(str(error))
            return False
        self._problem = ""
        return True

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            log.error("windows cannot be kept: %s", problem)
        self._problem = problem


def _repeated(windowers: Mapping[str, Windower]) -> int:
    return sum(windower.counts.repeated for windower in windowers.values())


def _check_source(source: str) -> None:
    if not 1 <= len(source.encode(errors="replace")) <= MAX_SOURCE_BYTES:
        raise InvalidInput(f"readings: a source has 1 to {MAX_SOURCE_BYTES} bytes")
