"""The service that takes readings: gRPC on a Unix socket of its own.

Its handlers and its queue are its own too, so that a sensor that floods it delays no prediction
that another program asks for.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import grpc
import numpy as np

from edge_client.tensors import make_tensor, read_tensor
from edge_client.window_stream import Fed, WindowStream
from fedge.channels import add_address, make_server
from fedge.errors import FedgeError, InvalidInput, InvalidSample, ModelError
from fedge.settings import TlsConfig
from fedge.windows import Readings
from protos.fedge.v1 import inference_pb2, readings_pb2, readings_pb2_grpc

log = logging.getLogger(__name__)

NUM_HANDLERS = 2
MAX_WAITING = 16
_MAX_SEQUENCE = 2**62

_CODES: tuple[tuple[type[FedgeError], grpc.StatusCode], ...] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidSample, grpc.StatusCode.INVALID_ARGUMENT),
    (ModelError, grpc.StatusCode.FAILED_PRECONDITION),
)


class ReadingsService(readings_pb2_grpc.ReadingsServicer):
    """Feeds readings to a stream of windows."""

    def __init__(self, stream: WindowStream) -> None:
        self._stream = stream

    def Feed(  # noqa: N802  the protocol's name
        self, request: readings_pb2.FeedRequest, context: grpc.ServicerContext
    ) -> readings_pb2.FeedResponse:
        """Take readings and answer with what they completed."""
        try:
            readings = _read(request) if request.HasField("values") else None
            return _answer(self._stream.feed(request.source, readings))
        except FedgeError as error:
            codes = (code for kind, code in _CODES if isinstance(error, kind))
            context.abort(next(codes, grpc.StatusCode.UNAVAILABLE), str(error))


class ReadingsServer:
    """Serves readings once it is known that the task takes any; a prediction never waits for that.

    Args:
        stream: what is fed.
        path: of the Unix socket.
    """

    def __init__(self, stream: WindowStream, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._lock = threading.Lock()
        self._stopped = False
        self._server: grpc.Server | None = None
        self._thread = threading.Thread(target=self._run, name="readings", daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """End what is served, and begin no more."""
        with self._lock:
            self._stopped = True
            if self._server is not None:
                self._server.stop(grace_s).wait()

    def _run(self) -> None:
        try:
            if not self._stream.takes_readings():
                return
            with self._lock:
                if not self._stopped:
                    self._server = serve_readings(self._stream, self._path)
        except FedgeError as error:
            if not self._stopped:
                log.error("this device takes no readings: %s", error)


def serve_readings(stream: WindowStream, path: Path) -> grpc.Server:
    """Return a running server of the service on a Unix socket with mode 0600.

    Raises:
        ConfigError: the socket cannot be used.
    """
    server = make_server(NUM_HANDLERS, max_concurrent=NUM_HANDLERS + MAX_WAITING)
    readings_pb2_grpc.add_ReadingsServicer_to_server(ReadingsService(stream), server)
    add_address(server, f"unix:{path}", TlsConfig(), key="state_dir")
    server.start()
    log.info("taking readings on %s", path)
    return server


def _read(request: readings_pb2.FeedRequest) -> Readings:
    values = read_tensor(request.values, "values")
    if values.dtype != np.float32 or values.ndim != 2:
        raise InvalidInput(
            f"values: expected float32 [N, C], got {values.dtype.name} {list(values.shape)}"
        )
    if request.first_sequence + len(values) > _MAX_SEQUENCE:
        raise InvalidInput(f"first_sequence: expected at most {_MAX_SEQUENCE}")
    sequences = request.first_sequence + np.arange(len(values), dtype=np.int64)
    return Readings(values, sequences, np.array(request.times_s, np.float64))


def _answer(fed: Fed) -> readings_pb2.FeedResponse:
    windows = []
    for each in fed.windows:
        version = each.prediction.version
        windows.append(
            readings_pb2.WindowPrediction(
                sample_id=each.sample_id,
                first_sequence=each.window.first,
                end_s=each.window.end_s,
                output=make_tensor(each.prediction.output),
                model=inference_pb2.ModelVersion(round=version.round, digest=version.digest),
                latency_us=each.prediction.latency_us,
            )
        )
    return readings_pb2.FeedResponse(
        windows=windows, next_sequence=fed.next_sequence, stored=fed.stored
    )
