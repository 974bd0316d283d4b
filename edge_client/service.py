"""The prediction service: gRPC on a Unix socket for this device, over TCP where configured."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from edge_client.inference import Array, Serving
from edge_client.sample_store import SampleDatabase
from edge_client.settings import InferenceConfig
from edge_client.tensors import make_tensor, read_tensor
from fedge.channels import add_address, bearer_token_interceptor, make_server, read_token
from fedge.errors import (
    FedgeError,
    InvalidInput,
    InvalidSample,
    ModelError,
    StoreError,
    UnknownSample,
)
from fedge.protocol import PROTOCOL_VERSION
from fedge.settings import TlsConfig, split_address
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

log = logging.getLogger(__name__)

NUM_HANDLERS = 8
MAX_STREAMS = NUM_HANDLERS // 2  # a stream holds a handler; the others stay free for single calls

_CODES: tuple[tuple[type[FedgeError], grpc.StatusCode], ...] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidSample, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownSample, grpc.StatusCode.NOT_FOUND),
    (ModelError, grpc.StatusCode.FAILED_PRECONDITION),
)


@dataclass(frozen=True)
class DeviceStatus:
    """How the device is, beyond its model and samples.

    Attributes:
        connected: the SuperLink is reached.
        problem: what stops the device from taking part; empty when nothing does.
        epsilon: ε spent, all rounds together; None without DP.
        delta: its δ.
        healthy: predictions are answered.
        figures: numbers by name; see `edge_client.metrics`.
    """

    connected: bool = False
    problem: str = ""
    epsilon: float | None = None
    delta: float | None = None
    healthy: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Answers from the model that serves now and keeps samples with an id.

    A sample that cannot be kept because the database fails does not stop the answer: the status
    names the problem until a sample is kept again.

    Args:
        status: called for each Status request, in its thread.
        observe: told the latency of each answer, in µs.
        max_rows: examples in one request at most.
    """

    def __init__(
        self,
        serving: Serving,
        samples: SampleDatabase,
        status: Callable[[], DeviceStatus],
        observe: Callable[[float], None] = lambda _: None,
        *,
        max_rows: int = InferenceConfig.max_rows,
    ) -> None:
        self._observe = observe
        self._serving = serving
        self._samples = samples
        self._status = status
        self._max_rows = max_rows
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)
        self._store_problem = ""

    def Predict(  # noqa: N802  the protocol's name
        self, request: inference_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictResponse:
        """Answer one request."""
        with _answering(context):
            return self._predict(request)

    def PredictStream(  # noqa: N802
        self,
        request_iterator: Iterator[inference_pb2.PredictRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[inference_pb2.PredictResponse]:
        """Answer request by request, in order; one that has no answer gets an error in place."""
        if not self._streams.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_STREAMS} streams are open, which is the most: use one of them or Predict",
            )
        if not context.add_callback(self._streams.release):
            self._streams.release()  # the caller is gone already
            return
        for request in request_iterator:
            yield self._predict_or_say_why_not(request)

    def Label(  # noqa: N802
        self, request: inference_pb2.LabelRequest, context: grpc.ServicerContext
    ) -> inference_pb2.LabelResponse:
        """Give a stored sample its label."""
        with _answering(context):
            self._samples.label(request.sample_id, read_tensor(request.label, "label"))
        return inference_pb2.LabelResponse()

    def Status(  # noqa: N802
        self, request: inference_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> inference_pb2.StatusResponse:
        """Tell what this device serves and how it is."""
        del request, context
        device = self._status()
        labelled, unlabelled = self._count_samples()
        problems = [text for text in (device.problem, self._store_problem) if text]
        model = self._model_version()
        return inference_pb2.StatusResponse(
            model=model,
            predictions=self._serving.num_predictions,
            predictions_failed=self._serving.num_failures,
            samples_labelled=labelled,
            samples_unlabelled=unlabelled,
            epsilon=device.epsilon,
            delta=device.delta,
            connected=device.connected,
            problem="; ".join(problems),
            protocol=PROTOCOL_VERSION,
            healthy=device.healthy and model is not None,
            figures=device.figures,
        )

    def _predict_or_say_why_not(
        self, request: inference_pb2.PredictRequest
    ) -> inference_pb2.PredictResponse:
        try:
            return self._predict(request)
        except FedgeError as error:
            number, _ = _code_of(error).value
            return inference_pb2.PredictResponse(
                error=inference_pb2.PredictError(code=number, message=str(error))
            )

    def _predict(self, request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse:
        inputs = read_tensor(request.input, "input")
        if request.sample_id and inputs.shape != self._serving.input_shape:
            raise InvalidInput(
                f"input: a sample_id names one example, expected shape "
                f"{list(self._serving.input_shape)}, got {list(inputs.shape)}"
            )
        self._check_rows(inputs)
        prediction = self._serving.predict(inputs)
        self._observe(prediction.latency_us)
        if request.sample_id:
            self._keep(request.sample_id, inputs)
        version = prediction.version
        return inference_pb2.PredictResponse(
            output=make_tensor(prediction.output),
            model=inference_pb2.ModelVersion(round=version.round, digest=version.digest),
            latency_us=prediction.latency_us,
        )

    def _check_rows(self, inputs: Array) -> None:
        if inputs.ndim == 0 or len(inputs) <= self._max_rows:
            return
        if inputs.shape[1:] == self._serving.input_shape:
            raise InvalidInput(
                f"input: expected at most {self._max_rows} examples in one request "
                f"(inference.max_rows), got {len(inputs)}"
            )

    def _keep(self, sample_id: str, inputs: Array) -> None:
        try:
            self._samples.add(sample_id, inputs)
        except StoreError as error:
            self._report(error)
        else:
            self._store_problem = ""

    def _count_samples(self) -> tuple[int, int]:
        try:
            return self._samples.counts()
        except StoreError as error:
            self._report(error)
            return 0, 0

    def _report(self, error: StoreError) -> None:
        if str(error) != self._store_problem:
            log.error("samples cannot be kept: %s", error)
        self._store_problem = str(error)

    def _model_version(self) -> inference_pb2.ModelVersion | None:
        try:
            version = self._serving.version
        except ModelError:
            return None
        return inference_pb2.ModelVersion(round=version.round, digest=version.digest)


def serve(service: InferenceService, path: Path, config: InferenceConfig) -> grpc.Server:
    """Return a running server of the service on a Unix socket with mode 0600.

    Beyond ``config.max_waiting`` waiting calls, one more is refused as RESOURCE_EXHAUSTED at
    once. ``server.stop(grace)`` ends it and removes the socket.

    Raises:
        ConfigError: the socket cannot be used, or another daemon serves on it.
    """
    server = _make(service, config)
    add_address(server, f"unix:{path}", TlsConfig(), key="inference.socket")
    server.start()
    log.info("serving predictions on %s", path)
    return server


def serve_address(service: InferenceService, config: InferenceConfig) -> tuple[grpc.Server, int]:
    """Return a running server of the service on ``config.address``, and its port.

    It has handlers and a queue of its own, so that callers from elsewhere cannot fill the
    socket's.

    Raises:
        ConfigError: the address is taken, or the token or a certificate cannot be read.
    """
    key = "inference.token_file"
    token = [] if config.token_file is None else [read_token(config.token_file, key)]
    server = _make(service, config, [bearer_token_interceptor(each) for each in token])
    port = add_address(server, config.address, config.tls, key="inference.address")
    server.start()
    host, _ = split_address(config.address, "inference.address")
    log.info("serving predictions on %s:%d", host, port)
    return server, port


def _make(
    service: InferenceService,
    config: InferenceConfig,
    interceptors: Sequence[grpc.ServerInterceptor[Any, Any]] = (),
) -> grpc.Server:
    num_handlers = max(NUM_HANDLERS, config.max_batch)  # else no batch could fill
    server = make_server(
        num_handlers,
        interceptors=interceptors,
        max_concurrent=num_handlers + config.max_waiting,
        max_request_bytes=config.max_request_bytes,
    )
    inference_pb2_grpc.add_InferenceServicer_to_server(service, server)
    return server


@contextmanager
def _answering(context: grpc.ServicerContext) -> Iterator[None]:
    """End the call with the status code of what fedge raises."""
    try:
        yield
    except FedgeError as error:
        context.abort(_code_of(error), str(error))


def _code_of(error: FedgeError) -> grpc.StatusCode:
    codes = (code for kind, code in _CODES if isinstance(error, kind))
    return next(codes, grpc.StatusCode.INTERNAL)
