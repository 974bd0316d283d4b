"""A sensor's readings over MQTT: read strictly, cut into windows, answered, committed.

A message's readings are taken in whole, once, or not at all: their windows' predictions are
committed to the outbox first, then windows and place in the stream together. A kill between the
two makes the broker send the readings again: the same windows come of them, and the outbox knows
that these were answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from edge_client.inference import Array
from edge_client.mqtt.answering import Answering
from edge_client.mqtt.counters import Counters
from edge_client.mqtt.json_values import read_array, read_object
from edge_client.mqtt.payloads import MAX_SEQUENCE, check_size, format_name, read_number
from edge_client.mqtt.settings import SchemaConfig
from edge_client.window_stream import CutWindow, Feed, WindowStream
from fedge.errors import FedgeError, ModelError, PayloadRejected, StoreError
from fedge.mqtt.messages import Incoming
from fedge.windows import Readings, WindowSpec

MAX_BYTES_TOGETHER = 8 * 2**20  # of the windows that are committed in one step


@dataclass(frozen=True)
class _WindowQuestion:
    """A window as the predictor wants it."""

    source: str
    sequence: int
    sample_id: str
    inputs: Array


class ReadingsIntake:
    """Feeds what a broker sends to the streams of windows.

    Args:
        schema: its shape must be that of the task's windows, ``[size, C]``.
        stream: what is fed.
        answering: answers windows.
        counters: what is counted.
    """

    def __init__(
        self,
        schema: SchemaConfig,
        stream: WindowStream,
        answering: Answering,
        counters: Counters,
    ) -> None:
        self._schema = schema
        self._stream = stream
        self._answering = answering
        self._counters = counters

    def read(self, message: Incoming) -> Feed:
        """Return the readings of a message.

        Raises:
            PayloadRejected: they are not what was agreed on, or the task takes none.
            StoreError: it is not known yet what the task takes.
        """
        self._counters.add("readings_messages_received")
        self._check_windows()
        return read_readings(message, self._schema)

    def keep(self, feeds: list[Feed]) -> None:
        """Take readings in, each message's in one step, and remove them from the list.

        Raises:
            PayloadRejected: the model takes something else than the task's windows.
            InvalidSample: the store is too small for one window.
            StoreError: the disk does not take them; none of those left were taken in.
        """
        while feeds:
            spec = self._spec()
            together = _first_of(feeds, spec)
            repeated = self._stream.take_in(together, partial(self._answer, spec))
            number = sum(len(each.readings) for each in together)
            self._counters.add("readings_accepted", number - repeated)
            self._counters.add("readings_repeated", repeated)
            del feeds[: len(together)]

    def _answer(self, spec: WindowSpec, windows: list[CutWindow]) -> None:
        answers = []
        for each in windows:
            first, run = each.window.first, each.window.run
            question = _WindowQuestion(each.source, first, each.sample_id, each.window.inputs)
            # Numbers without gaps, where windows touch, so that the outbox counts none.
            number = first // min(spec.size, spec.hop)
            # Cut otherwise, after an update, they are numbered otherwise.
            counted_as = f"windows {spec.digest[:8]} of {each.source}/{run}"
            answers.append(self._answering.answer(question, counted_as, number))
        self._counters.add("windows_accepted", self._answering.keep(answers))

    def _spec(self) -> WindowSpec:
        try:
            return self._stream.spec()
        except ModelError as error:
            raise PayloadRejected("no-windows", f"cannot be used: {error}") from error
        except FedgeError as error:
            raise StoreError(f"it is not known how readings are cut: {error}") from error

    def _check_windows(self) -> None:
        spec = self._spec()
        if self._schema.shape != (spec.size, spec.num_channels):
            raise PayloadRejected(
                "model-input",
                f"cannot be used: mqtt.schema.shape is {list(self._schema.shape)}, the task's "
                f"windows are {[spec.size, spec.num_channels]}",
            )


def _first_of(feeds: list[Feed], spec: WindowSpec) -> list[Feed]:
    """Return the first readings, at least one message's, whose windows take little memory.

    What a hop of one makes of a backlog is many times its size.
    """
    window_bytes, taken_bytes = 4 * spec.size * spec.num_channels, 0.0
    for number, each in enumerate(feeds):
        taken_bytes += window_bytes * len(each.readings) / spec.hop
        if taken_bytes > MAX_BYTES_TOGETHER and number:
            return feeds[:number]
    return feeds[:]


def read_readings(message: Incoming, schema: SchemaConfig) -> Feed:
    """Return the readings of a message: JSON, or packed values with the rest in user properties.

    JSON is ``{"source": …, "sequence": …, "times_s": [N], "values": [N, C]}``. Packed values
    are taken ``interval_s`` apart from ``time_s`` on. ``sequence`` is the first one's number.

    Raises:
        PayloadRejected: it is not what was agreed on.
    """
    check_size(message, schema)
    read = {"json": _read_json, "packed": _read_packed}[format_name(message, schema)]
    source, sequence, values, times_s = read(message, schema)
    if not len(values):
        raise PayloadRejected("shape", "has no readings")
    if sequence + len(values) > MAX_SEQUENCE:
        raise PayloadRejected("sequence", f"has readings beyond number {MAX_SEQUENCE}")
    sequences = sequence + np.arange(len(values), dtype=np.int64)
    return Feed(source, Readings(values, sequences, times_s))


def _read_json(message: Incoming, schema: SchemaConfig) -> tuple[str, int, Array, Array]:
    found = read_object(message.payload)
    if not isinstance(found.get("values"), list) or not isinstance(found.get("times_s"), list):
        raise PayloadRejected("missing", "must have lists times_s and values")
    shape = (len(found["values"]), schema.shape[-1])
    return (
        *read_number(found, message.properties),
        read_array(found["values"], shape, schema.dtype, "values"),
        read_array(found["times_s"], shape[:1], "float64", "times_s"),
    )


def _read_packed(message: Incoming, schema: SchemaConfig) -> tuple[str, int, Array, Array]:
    dtype = np.dtype(schema.dtype).newbyteorder("<")
    row_bytes = schema.shape[-1] * dtype.itemsize
    if len(message.payload) % row_bytes:
        raise PayloadRejected("shape", f"must have a multiple of {row_bytes} bytes")
    # NaN is a reading that failed: the windows with it are dropped, the others are not.
    values = np.frombuffer(message.payload, dtype).astype(schema.dtype)
    values = values.reshape(-1, schema.shape[-1])
    first_s, interval_s = (_read_float(message, name) for name in ("time_s", "interval_s"))
    times_s = first_s + interval_s * np.arange(len(values))
    return (*read_number({}, message.properties), values, times_s)


def _read_float(message: Incoming, name: str) -> float:
    try:
        value = float(message.properties.get(name, ""))
    except ValueError:
        value = math.nan
    if not abs(value) < 1e15:  # so that no time after it is infinite
        raise PayloadRejected("missing", f"must have a number as user property {name}")
    return value
