"""Load on a device that is killed meanwhile: what was acknowledged is noted, the rest sent again.

A load is a class with the members of `Load`. Each sends one thing after another, again and again
until it is acknowledged, and knows at the end which samples must be stored, and how.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np

from edge_client.tensors import make_tensor, read_tensor
from fedge.channels import client_channel
from fedge.mqtt.topics import DeviceTopics
from fedge.settings import TlsConfig
from fedge.tasks.sensor import WINDOWS
from fedge.windows import Readings, cut_windows
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc, readings_pb2, readings_pb2_grpc
from tests.mqtt_source import Source

PAUSE_S = 0.005  # between two requests
RETRY_S = 0.05
CALL_S = 10.0
FIRST_S = 120.0
CheckAnswer = Callable[[np.ndarray, inference_pb2.ModelVersion, np.ndarray], None]
"""Is told input, version and output of each answer; raises if they do not belong together."""


@dataclass(frozen=True)
class Kept:
    """How a sample must be stored."""

    input: bytes
    target: int | None = None


class Load(Protocol):
    """One source of load."""

    def start(self) -> None:
        """Begin to send."""

    def stop(self) -> None:
        """End once everything that was sent is acknowledged; the device must be up."""

    def check(self) -> None:
        """Raise what went wrong while it was sending."""

    @property
    def num_acknowledged(self) -> int:
        """How much was acknowledged so far."""
        ...

    def expected(self) -> dict[str, Kept]:
        """Return the samples that were acknowledged, by id."""
        ...


class GrpcLoad:
    """Calls a service on a Unix socket, again after each failure; a subclass says what.

    Args:
        socket: the service's.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self.num_acknowledged = 0
        self.num_retries = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self._error is not None:
            raise self._error

    def step(self, channel: grpc.Channel) -> None:
        """Have one thing acknowledged."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while not self._stop.wait(PAUSE_S):
                self._insist()
        except BaseException as error:
            self._error = error

    def _insist(self) -> None:
        while True:
            try:
                with client_channel(f"unix:{self._socket}", TlsConfig()) as channel:
                    while True:
                        self.step(channel)
                        self.num_acknowledged += 1
                        if self._stop.wait(PAUSE_S):
                            return
            except grpc.RpcError as error:
                code = error.code()
                if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                    raise
                self.num_retries += 1
                threading.Event().wait(RETRY_S)


class Predictions(GrpcLoad):
    """Samples with an id by `Predict`, every third with a label; never out of order."""

    def __init__(self, socket: Path, check: CheckAnswer) -> None:
        super().__init__(socket)
        self._check_answer = check
        self._number = 0

    def step(self, channel: grpc.Channel) -> None:
        stub, number = inference_pb2_grpc.InferenceStub(channel), self._number
        inputs = self._input(number)
        request = inference_pb2.PredictRequest(
            input=make_tensor(inputs), sample_id=f"grpc-{number}"
        )
        response = stub.Predict(request, timeout=CALL_S)
        self._check_answer(inputs, response.model, read_tensor(response.output, "output"))
        if (target := self._target(number)) is not None:
            label = inference_pb2.LabelRequest(
                sample_id=f"grpc-{number}", label=make_tensor(target)
            )
            stub.Label(label, timeout=CALL_S)
        self._number += 1

    def expected(self) -> dict[str, Kept]:
        return {
            f"grpc-{number}": Kept(self._input(number).tobytes(), self._target(number))
            for number in range(self._number)
        }

    @staticmethod
    def _input(number: int) -> np.ndarray:
        shape = (WINDOWS.size, WINDOWS.num_channels)
        return np.random.default_rng(number).random(shape, np.float32)

    @staticmethod
    def _target(number: int) -> int | None:
        return number % 4 if number % 3 == 0 else None


class Sensor(GrpcLoad):
    """Readings by `Feed`, in order; after each failure it asks where to go on."""

    source = "press/accelerometer"
    batch = 40

    def __init__(self, socket: Path, check: CheckAnswer) -> None:
        super().__init__(socket)
        self._check_answer = check
        self._acknowledged = 0
        self._channel: grpc.Channel | None = None
        self._next = 0

    def step(self, channel: grpc.Channel) -> None:
        stub = readings_pb2_grpc.ReadingsStub(channel)
        if channel is not self._channel:
            asked = stub.Feed(readings_pb2.FeedRequest(source=self.source), timeout=CALL_S)
            assert asked.next_sequence >= self._acknowledged, "acknowledged readings are lost"
            # A few are sent again, as a source would whose own memory is behind.
            self._next, self._channel = max(0, asked.next_sequence - 7), channel
        readings = self._readings(self._next, self.batch)
        response = stub.Feed(
            readings_pb2.FeedRequest(
                source=self.source,
                first_sequence=self._next,
                times_s=readings.times_s.tolist(),
                values=make_tensor(readings.values),
            ),
            timeout=CALL_S,
        )
        assert response.stored
        self._next = self._acknowledged = response.next_sequence
        for window in response.windows:
            raw = self._readings(window.first_sequence, WINDOWS.size).values
            output = read_tensor(window.output, "output")
            self._check_answer(WINDOWS.normalise(raw), window.model, output)

    def expected(self) -> dict[str, Kept]:
        cut = cut_windows(self._readings(0, self._acknowledged), WINDOWS)
        first = cut.last - WINDOWS.size + 1
        return {
            f"{self.source}/0/{number}": Kept(inputs.tobytes())
            for number, inputs in zip(first, cut.inputs, strict=True)
        }

    @staticmethod
    def _readings(first: int, number: int) -> Readings:
        sequences = first + np.arange(number, dtype=np.int64)
        values = np.stack([np.sin(sequences / k) for k in (2, 3, 5)], axis=1).astype(np.float32)
        return Readings(values, sequences, sequences / 100)


class MqttSamples:
    """Samples over MQTT by a source of their own, each acknowledged by the device's prediction.

    Args:
        port: of the broker, which is not killed.
        topics: of the device.
        check: is told each answer.
    """

    source = "camera"
    most_unanswered = 200

    def __init__(self, port: int, topics: DeviceTopics, check: CheckAnswer) -> None:
        self._topics = topics
        self._check_answer = check
        self._client = Source(port, topics.predictions, topics.status)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self._sent = 0
        self._read = 0
        self._answers: dict[int, int] = {}  # our number → the device's

    @property
    def num_acknowledged(self) -> int:
        return len(self._answers)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(120)
        self._client.close()
        assert not self._thread.is_alive(), f"{self._sent - len(self._answers)} without an answer"
        self.check()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def expected(self) -> dict[str, Kept]:
        return {
            f"{self.source}/{number}": Kept(self._input(number).tobytes())
            for number in range(self._sent)
        }

    def _run(self) -> None:
        try:
            # Before its first subscription nobody keeps anything for the device.
            self._client.wait(lambda: b"online" in self._client.payloads("/status"), FIRST_S)
            while not (self._stop.is_set() and len(self._answers) == self._sent):
                self._hear()
                if not self._stop.is_set() and self._sent - len(self._answers) < (
                    self.most_unanswered
                ):
                    self._send()
                threading.Event().wait(PAUSE_S)
        except BaseException as error:
            self._error = error

    def _send(self) -> None:
        properties = {"source": self.source, "sequence": str(self._sent)}
        self._client.send(
            self._topics.samples,
            self._input(self._sent).tobytes(),
            properties,
            content_type="application/octet-stream",
        )
        self._sent += 1

    def _hear(self) -> None:
        heard = self._client.heard
        while self._read < len(heard):
            topic, payload, _ = heard[self._read]
            self._read += 1
            if topic != self._topics.predictions:
                continue
            answer = json.loads(payload)
            number = answer["source_sequence"]
            assert self._answers.setdefault(number, answer["sequence"]) == answer["sequence"]
            model = inference_pb2.ModelVersion(**answer["model"])
            output = np.array(answer["output"], np.float32).reshape(answer["shape"])
            self._check_answer(self._input(number), model, output)

    @staticmethod
    def _input(number: int) -> np.ndarray:
        shape = (WINDOWS.size, WINDOWS.num_channels)
        return np.random.default_rng(2**32 + number).random(shape, np.float32)


def kept_of(sample: Any) -> Kept:
    """Return how a `StoredSample` is stored, to compare."""
    return Kept(sample.input.tobytes(), None if sample.target is None else int(sample.target))
