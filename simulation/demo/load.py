"""A load generator: asks every device for predictions, steadily, and keeps every latency."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from fedge.channels import client_channel
from fedge.settings import TlsConfig
from fedge.task import Examples
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

REQUEST_DEADLINE_S = 2.0
READY_POLL_S = 0.05


@dataclass(frozen=True)
class LoadSnapshot:
    """What the load generator has seen so far.

    Attributes:
        latencies_ms: client-side, of every answered request, in order of arrival.
        failures: failed requests by gRPC status name.
    """

    latencies_ms: tuple[float, ...]
    failures: dict[str, int]

    @property
    def num_predictions(self) -> int:
        """Number of answered requests."""
        return len(self.latencies_ms)

    def percentile_ms(self, percent: float, last: int = 0) -> float:
        """Return a latency percentile, of the last so many answers if given; NaN without any."""
        values = self.latencies_ms[-last:] if last else self.latencies_ms
        return float(np.percentile(values, percent)) if values else float("nan")


class LoadGenerator:
    """One thread a device, from the first answer of each until `stop`.

    Args:
        sockets: Unix sockets of the devices.
        examples: inputs to ask with, in turn.
        requests_per_s: of each device.
    """

    def __init__(self, sockets: list[Path], examples: Examples, requests_per_s: float) -> None:
        self._interval_s = 1.0 / requests_per_s
        self._inputs = np.ascontiguousarray(examples.inputs, np.float32)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._latencies_ms: list[float] = []
        self._failures: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._ask, args=(path,), daemon=True) for path in sockets
        ]

    def start(self) -> None:
        """Begin to ask; each device is asked from the moment it first answers."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> LoadSnapshot:
        """Stop asking and return everything seen."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=REQUEST_DEADLINE_S + 1)
        return self.snapshot()

    def snapshot(self) -> LoadSnapshot:
        """Return everything seen so far."""
        with self._lock:
            return LoadSnapshot(tuple(self._latencies_ms), dict(self._failures))

    def _ask(self, socket: Path) -> None:
        with client_channel(f"unix:{socket}", TlsConfig()) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            if not self._wait_until_ready(stub):
                return
            index, due = 0, time.monotonic()
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                self._predict(stub, self._inputs[index % len(self._inputs)])
                index += 1
                due += self._interval_s

    def _wait_until_ready(self, stub: inference_pb2_grpc.InferenceStub) -> bool:
        while not self._stopped.is_set():
            try:
                stub.Status(inference_pb2.StatusRequest(), timeout=REQUEST_DEADLINE_S)
                return True
            except grpc.RpcError:
                self._stopped.wait(READY_POLL_S)
        return False

    def _predict(self, stub: inference_pb2_grpc.InferenceStub, example: np.ndarray) -> None:
        tensor = inference_pb2.Tensor(
            dtype="float32", shape=example.shape, data=example.astype("<f4").tobytes()
        )
        begin = time.perf_counter()
        try:
            stub.Predict(inference_pb2.PredictRequest(input=tensor), timeout=REQUEST_DEADLINE_S)
        except grpc.RpcError as error:
            with self._lock:
                self._failures[error.code().name] += 1
            return
        latency_ms = (time.perf_counter() - begin) * 1e3
        with self._lock:
            self._latencies_ms.append(latency_ms)
