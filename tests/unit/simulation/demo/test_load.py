"""The load generator against a real gRPC server on a Unix socket."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edge_client.inference import Serving
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import InferenceConfig, StoreConfig
from edge_client.tensors import make_tensor, read_tensor
from fedge.channels import add_address, make_server
from fedge.settings import TlsConfig
from fedge.task import Examples
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc
from simulation.demo.load import LoadGenerator, LoadSnapshot
from tests.unit.edge_client.engines import make_engine, make_inputs

EXAMPLES = Examples(np.arange(6, dtype=np.float64).reshape(3, 2), np.arange(3))
DEADLINE_S = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


class StandInDevice(inference_pb2_grpc.InferenceServicer):
    """Notes what it is asked, and fails every third request if told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[list[float]] = []
        self.fails = fails
        self._lock = threading.Lock()

    def Status(  # noqa: N802  the protocol's name
        self, request: inference_pb2.StatusRequest, context: grpc.ServicerContext
    ) -> inference_pb2.StatusResponse:
        return inference_pb2.StatusResponse()

    def Predict(  # noqa: N802
        self, request: inference_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictResponse:
        with self._lock:
            self.asked.append(read_tensor(request.input, "input").tolist())
            number = len(self.asked)
        if self.fails and number % 3 == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
        return inference_pb2.PredictResponse(output=make_tensor(np.zeros(1, np.float32)))

    def PredictStream(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError("the load generator asks one by one")

    def Label(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError("the load generator labels nothing")


@contextmanager
def serving(device: StandInDevice, path: Path) -> Iterator[grpc.Server]:
    server = make_server(4)
    inference_pb2_grpc.add_InferenceServicer_to_server(device, server)
    add_address(server, f"unix:{path}", TlsConfig())
    server.start()
    yield server
    server.stop(0).wait()


@pytest.fixture
def generator_of() -> Iterator[Callable[..., LoadGenerator]]:
    made = []

    def make(*paths: Path, rate: float = 200.0) -> LoadGenerator:
        made.append(LoadGenerator(list(paths), EXAMPLES, rate))
        return made[-1]

    yield make
    for generator in made:
        generator.stop()


def test_every_device_is_asked_the_examples_in_turn_until_it_is_stopped(
    tmp_path: Path, generator_of: Callable[..., LoadGenerator]
) -> None:
    paths = [tmp_path / "0.sock", tmp_path / "1.sock"]
    devices = [StandInDevice(), StandInDevice()]
    with serving(devices[0], paths[0]), serving(devices[1], paths[1]):
        generator = generator_of(*paths)
        generator.start()
        wait_until(lambda: all(len(device.asked) >= 7 for device in devices))
        seen = generator.stop()
        asked = [list(device.asked) for device in devices]
        assert seen.num_predictions == sum(len(each) for each in asked)
        assert seen == generator.snapshot()
    assert seen.failures == {}
    assert all(latency > 0 for latency in seen.latencies_ms)
    for each in asked:
        assert each == [EXAMPLES.inputs[index % 3].tolist() for index in range(len(each))]
    assert all(device.asked == before for device, before in zip(devices, asked, strict=True))


def test_requests_come_no_faster_than_told(
    tmp_path: Path, generator_of: Callable[..., LoadGenerator]
) -> None:
    device = StandInDevice()
    with serving(device, tmp_path / "0.sock"):
        generator = generator_of(tmp_path / "0.sock", rate=40.0)
        began = time.monotonic()
        generator.start()
        wait_until(lambda: len(device.asked) >= 9)
        generator.stop()
        elapsed_s = time.monotonic() - began
    assert len(device.asked) <= 1 + 40.0 * elapsed_s


def test_failures_are_counted_by_status_and_have_no_latency(
    tmp_path: Path, generator_of: Callable[..., LoadGenerator]
) -> None:
    device = StandInDevice(fails=True)
    with serving(device, tmp_path / "0.sock"):
        generator = generator_of(tmp_path / "0.sock")
        generator.start()
        wait_until(lambda: len(device.asked) >= 9)
        seen = generator.stop()
    assert seen.failures == {"RESOURCE_EXHAUSTED": len(device.asked) // 3}
    assert seen.num_predictions == len(device.asked) - len(device.asked) // 3


def test_a_device_that_is_not_up_yet_is_waited_for_and_one_that_goes_is_a_failure(
    tmp_path: Path, generator_of: Callable[..., LoadGenerator]
) -> None:
    path, device = tmp_path / "0.sock", StandInDevice()
    generator = generator_of(path)
    generator.start()
    with serving(device, path):
        wait_until(lambda: generator.snapshot().num_predictions >= 3)
        assert generator.snapshot().failures == {}
    wait_until(lambda: generator.snapshot().failures.get("UNAVAILABLE", 0) >= 2)
    assert set(generator.stop().failures) <= {"UNAVAILABLE", "CANCELLED"}


def test_a_generator_whose_devices_never_come_up_stops_and_has_seen_nothing(
    tmp_path: Path, generator_of: Callable[..., LoadGenerator]
) -> None:
    generator = generator_of(tmp_path / "nobody.sock")
    generator.start()
    assert generator.stop() == LoadSnapshot((), {})


def test_the_real_service_counts_the_same_predictions(tmp_path: Path) -> None:
    live = Serving(make_engine(1))
    with SampleDatabase(tmp_path / "samples.db", StoreConfig()) as samples:
        service = InferenceService(live, samples, DeviceStatus)
        server = serve(service, tmp_path / "0.sock", InferenceConfig())
        generator = LoadGenerator(
            [tmp_path / "0.sock"], Examples(make_inputs(5), np.zeros(5)), requests_per_s=200.0
        )
        generator.start()
        try:
            wait_until(lambda: generator.snapshot().num_predictions >= 20)
        finally:
            seen = generator.stop()
            server.stop(0).wait()
        assert samples.counts() == (0, 0)
    assert (seen.num_predictions, seen.failures) == (live.num_predictions, {})


def test_percentiles_are_of_all_answers_or_of_the_last_ones() -> None:
    seen = LoadSnapshot((9.0, 9.0, 1.0, 2.0, 3.0), {})
    assert seen.percentile_ms(50) == 3.0
    assert seen.percentile_ms(50, last=3) == 2.0
    assert seen.percentile_ms(100, last=100) == 9.0
    assert np.isnan(LoadSnapshot((), {}).percentile_ms(50))
