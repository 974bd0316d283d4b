import itertools
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from edge_client.inference import Engine, Serving, Version
from edge_client.sample_store import SampleDatabase
from edge_client.service import MAX_STREAMS, NUM_HANDLERS, DeviceStatus, InferenceService, serve
from edge_client.settings import InferenceConfig, StoreConfig
from edge_client.tensors import make_tensor, read_tensor
from fedge.channels import client_channel
from fedge.errors import InvalidInput, StoreError
from fedge.protocol import PROTOCOL_VERSION
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

MAX_WAITING = 3
MAX_ROWS = 16
MAX_REQUEST_BYTES = 4096
LIMITS = InferenceConfig(
    max_waiting=MAX_WAITING, max_rows=MAX_ROWS, max_request_bytes=MAX_REQUEST_BYTES
)


class DoublingEngine:
    """Stands in for an engine: takes ``[2]`` or ``[B, 2]`` and doubles it, when it may."""

    has_taken_batches = False

    def __init__(self, round: int = 1) -> None:
        self.version = Version(round, f"digest-{round}")
        self.input_shape = (2,)
        self.may_answer = threading.Event()
        self.may_answer.set()

    def predict(self, inputs: Any) -> Any:
        if inputs.shape[-1:] != self.input_shape:
            raise InvalidInput(f"input: expected shape [2], got {list(inputs.shape)}")
        assert self.may_answer.wait(30)
        return 2 * inputs


class Device:
    """One served device and a client of it."""

    def __init__(self, folder: Path, engine: DoublingEngine | None) -> None:
        self.socket = folder / "inference.sock"
        self.engine = engine
        self.serving = Serving(cast("Engine | None", engine))
        self.samples = SampleDatabase(folder / "samples.db", StoreConfig(holdout_fraction=0.0))
        self.status = DeviceStatus()
        self.service = InferenceService(
            self.serving, self.samples, lambda: self.status, max_rows=MAX_ROWS
        )
        self.server = serve(self.service, self.socket, LIMITS)
        self.channel = client_channel(f"unix:{self.socket}", TlsConfig())
        self.stub = inference_pb2_grpc.InferenceStub(self.channel)

    def predict(self, values: Any, sample_id: str = "") -> inference_pb2.PredictResponse:
        return self.stub.Predict(request_of(values, sample_id), timeout=30)

    def label(self, sample_id: str, value: Any) -> None:
        request = inference_pb2.LabelRequest(sample_id=sample_id, label=make_tensor(value))
        self.stub.Label(request, timeout=10)

    def ask_status(self) -> inference_pb2.StatusResponse:
        return self.stub.Status(inference_pb2.StatusRequest(), timeout=10)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.may_answer.set()
        self.channel.close()
        self.server.stop(0).wait()
        self.samples.close()


def request_of(values: Any, sample_id: str = "") -> inference_pb2.PredictRequest:
    tensor = make_tensor(np.asarray(values, np.float32))
    return inference_pb2.PredictRequest(input=tensor, sample_id=sample_id)


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path, DoublingEngine())
    yield device
    device.close()


@pytest.fixture
def empty_device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path, None)
    yield device
    device.close()


def test_a_prediction_names_the_version_that_made_it(device: Device) -> None:
    response = device.predict([1, 2])
    assert read_tensor(response.output, "output").tolist() == [2, 4]
    assert (response.model.round, response.model.digest) == (1, "digest-1")
    assert response.latency_us > 0


def test_a_batch_is_answered_row_by_row(device: Device) -> None:
    response = device.predict([[1, 2], [3, 4]])
    assert read_tensor(response.output, "output").tolist() == [[2, 4], [6, 8]]


def test_a_swapped_version_answers_the_next_request(device: Device) -> None:
    device.serving.swap(cast("Engine", DoublingEngine(round=2)))
    assert device.predict([1, 2]).model.round == 2


def test_the_socket_is_its_owners_alone_and_goes_with_the_server(device: Device) -> None:
    assert stat.S_IMODE(device.socket.stat().st_mode) == 0o600
    device.server.stop(0).wait()
    assert not device.socket.exists()


def test_a_stream_keeps_the_order_of_its_requests(device: Device) -> None:
    requests = (request_of([n, n]) for n in range(50))
    answers = [read_tensor(r.output, "o")[0] for r in device.stub.PredictStream(requests)]
    assert answers == [2 * n for n in range(50)]


def test_a_bad_request_of_a_stream_gets_an_error_in_its_place(device: Device) -> None:
    asked = [
        request_of([1, 1]),
        request_of([1]),
        inference_pb2.PredictRequest(),
        request_of([2, 2]),
    ]
    first, bad, empty, last = device.stub.PredictStream(iter(asked), timeout=10)
    assert read_tensor(first.output, "o").tolist() == [2, 2]
    assert not first.HasField("error")
    assert bad.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "expected shape [2], got [1]" in bad.error.message
    assert not bad.HasField("output")
    assert "expected dtype" in empty.error.message
    assert read_tensor(last.output, "o").tolist() == [4, 4]
    assert device.ask_status().predictions == 2


def test_a_stream_of_a_device_without_a_model_waits_for_one(empty_device: Device) -> None:
    arrived = threading.Event()

    def ask() -> Iterator[inference_pb2.PredictRequest]:
        yield request_of([1, 1])
        assert arrived.wait(30)
        yield request_of([1, 1])

    stream = iter(empty_device.stub.PredictStream(ask(), timeout=30))
    assert next(stream).error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    empty_device.serving.swap(cast("Engine", DoublingEngine()))
    arrived.set()
    assert read_tensor(next(stream).output, "o").tolist() == [2, 2]


def test_a_request_of_too_many_examples_is_told_how_many_may_be(device: Device) -> None:
    code, detail = refusal(lambda: device.predict(np.zeros((MAX_ROWS + 1, 2))))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert f"at most {MAX_ROWS} examples in one request (inference.max_rows)" in detail
    assert device.predict(np.zeros((MAX_ROWS, 2))).output.shape == [MAX_ROWS, 2]


def test_a_request_of_too_many_bytes_is_refused_before_it_is_read(device: Device) -> None:
    too_large = inference_pb2.PredictRequest(sample_id="x" * (MAX_REQUEST_BYTES + 1))
    code, detail = refusal(lambda: device.stub.Predict(too_large, timeout=10))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_REQUEST_BYTES) in detail


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (request_of([1, 2, 3]), "expected shape [2], got [3]"),
        (inference_pb2.PredictRequest(), "expected dtype"),
        (request_of([[1, 2], [3, 4]], "a"), "names one example, expected shape [2], got [2, 2]"),
        (request_of([1, 2], "x" * 300), "1 to 256 bytes"),
        (request_of([1, np.nan], "a"), "NaN"),
    ],
)
def test_a_bad_request_is_told_what_was_expected(
    device: Device, request_: inference_pb2.PredictRequest, expected: str
) -> None:
    code, detail = refusal(lambda: device.stub.Predict(request_, timeout=10))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert expected in detail
    assert device.samples.counts() == (0, 0)


def test_a_device_without_a_model_says_so(empty_device: Device) -> None:
    for call in (lambda: empty_device.predict([1, 2]), lambda: empty_device.predict([1, 2], "a")):
        code, detail = refusal(call)
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert "no model yet" in detail
    assert not empty_device.ask_status().HasField("model")
    empty_device.serving.swap(cast("Engine", DoublingEngine()))
    assert read_tensor(empty_device.predict([1, 2]).output, "output").tolist() == [2, 4]


def test_a_sample_with_an_id_becomes_training_data_once_labelled(device: Device) -> None:
    device.predict([1, 2], "a")
    device.predict([3, 4])
    assert device.samples.counts() == (0, 1)
    device.label("a", 7)
    examples = device.samples.labelled("train")
    assert examples.inputs.tolist() == [[1, 2]]
    assert examples.targets.tolist() == [7]


def test_labelling_an_unknown_sample_is_not_found(device: Device) -> None:
    code, detail = refusal(lambda: device.label("nobody", 1))
    assert code == grpc.StatusCode.NOT_FOUND
    assert "'nobody'" in detail


def test_a_label_that_is_not_finite_is_refused(device: Device) -> None:
    device.predict([1, 2], "a")
    code, _ = refusal(lambda: device.label("a", np.nan))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert device.samples.counts() == (0, 1)


def test_status_tells_model_counts_and_privacy(device: Device) -> None:
    device.status = DeviceStatus(connected=True, problem="no budget", epsilon=1.5, delta=1e-5)
    device.predict([1, 2], "a")
    device.predict([1, 2], "b")
    device.label("a", 1)
    refusal(lambda: device.predict([1]))
    status = device.ask_status()
    assert (status.model.round, status.model.digest) == (1, "digest-1")
    assert (status.predictions, status.predictions_failed) == (2, 1)
    assert (status.samples_labelled, status.samples_unlabelled) == (1, 1)
    assert (status.epsilon, status.delta, status.connected) == (1.5, 1e-5, True)
    assert status.problem == "no budget"
    assert status.protocol == PROTOCOL_VERSION


def test_status_has_no_epsilon_without_dp(device: Device) -> None:
    assert not device.ask_status().HasField("epsilon")


def test_a_failing_database_stops_neither_answers_nor_status(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("samples.db: disk full")

    with monkeypatch.context() as broken:
        broken.setattr(device.samples, "add", fail)
        broken.setattr(device.samples, "counts", fail)
        for _ in range(2):
            assert read_tensor(device.predict([1, 2], "a").output, "output").tolist() == [2, 4]
        assert device.ask_status().problem == "samples.db: disk full"
    assert caplog.text.count("disk full") == 1
    device.predict([1, 2], "a")
    assert device.ask_status().problem == ""


def test_overload_is_refused_at_once_and_what_waits_is_answered(device: Device) -> None:
    assert device.engine is not None
    device.engine.may_answer.clear()
    room = NUM_HANDLERS + MAX_WAITING
    with ThreadPoolExecutor(room + 5) as clients:
        futures = [clients.submit(device.predict, [n, n]) for n in range(room + 5)]
        answered_first = itertools.islice(as_completed(futures, timeout=30), 5)
        codes = [cast("Any", future.exception()).code() for future in answered_first]
        device.engine.may_answer.set()
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 5
    assert sum(future.exception() is None for future in futures) == room


def test_streams_leave_room_for_single_calls_and_free_it_when_they_end(device: Device) -> None:
    ends = threading.Event()

    def endless() -> Iterator[inference_pb2.PredictRequest]:
        yield request_of([1, 1])
        ends.wait(30)

    streams = [device.stub.PredictStream(endless(), timeout=30) for _ in range(MAX_STREAMS)]
    for stream in streams:
        next(iter(stream))
    code, detail = refusal(lambda: list(device.stub.PredictStream(endless(), timeout=30)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "streams are open" in detail
    device.predict([1, 2])
    ends.set()
    for stream in streams:
        assert list(stream) == []
    assert len(list(device.stub.PredictStream(iter([request_of([1, 1])]), timeout=10))) == 1
