"""kill -9 of the daemon at any instant, under load and swaps: nothing acknowledged is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.mosquitto import Mosquitto
from edge_client.sample_reader import SampleReader
from edge_client.settings import StoreConfig
from fedge.channels import client_channel
from fedge.mqtt.topics import DeviceTopics
from fedge.params import vector_digest
from fedge.settings import TlsConfig
from fedge.task import EdgeFiles
from fedge.tasks.sensor import Sensor as SensorTask
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc
from server.export import Exporter
from server.publisher import Publisher
from server.registry import RegistryServer
from server.release_key import load_or_create_release_key, public_path
from tests.integration.daemon_loads import Load, MqttSamples, Predictions, Sensor, kept_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

NUM_KILLS = 100 if os.environ.get("FEDGE_ALL_KILLS") else 10
DEADLINE_S = 120.0
PUBLISH_EVERY_S = 0.4
BEYOND_READY_S = 1.5  # a kill comes at most so long after every load has gone on
TASK = SensorTask()
TOPICS = DeviceTopics("ward", "box")


class Versions:
    """Publishes a version every now and then, and knows what each must answer."""

    def __init__(self, folder: Path) -> None:
        files = TASK.edge_files()
        assert files is not None
        self._patcher = Patcher.from_bytes(files.template.read_bytes(), files.plan.read_bytes())
        shipped = self._patcher.shipped_weights()
        self._weights = {vector_digest(shipped): shipped}
        self._rounds = {vector_digest(shipped): 0}
        self.newest_seen = 0
        self.key_path = folder / "release.key"
        key: Ed25519PrivateKey = load_or_create_release_key(self.key_path)
        self._exporter = Exporter(TASK, folder / "edge", self._refuse)
        self._publisher = Publisher(
            folder / "registry", key, run_name="run", task=TASK.name, keep_versions=5
        )
        self._server = RegistryServer(self._publisher, "127.0.0.1:0", TlsConfig())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._running = threading.Lock()  # a runner is not safe across threads
        self._runner = lru_cache(maxsize=8)(self._make_runner)

    @property
    def num_published(self) -> int:
        return len(self._rounds) - 1

    def start(self) -> str:
        """Begin, and return the registry's address."""
        port = self._server.start()
        self._thread.start()
        return f"127.0.0.1:{port}"

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        self._server.stop()

    def check_answer(
        self, inputs: np.ndarray, model: inference_pb2.ModelVersion, output: np.ndarray
    ) -> None:
        """Check that one version that was published, and no older one than before, answered."""
        assert self._rounds[model.digest] == model.round
        with self._running:
            expected = self._runner(model.digest).run_one(inputs)
        np.testing.assert_allclose(output, expected, atol=1e-5)
        self.newest_seen = max(self.newest_seen, model.round)

    def check_served(self, model: inference_pb2.ModelVersion, at_least: int) -> None:
        """Check that a device that started again serves the version that it served, or newer."""
        assert self._rounds[model.digest] == model.round
        assert model.round >= at_least

    def _run(self) -> None:
        layout, random = self._patcher.plan.layout, np.random.default_rng(3)
        while not self._stop.wait(PUBLISH_EVERY_S):
            number = self.num_published + 1
            weights = random.normal(0, 0.2, layout.size).astype(np.float32)
            self._weights[vector_digest(weights)] = weights
            self._rounds[vector_digest(weights)] = number
            self._publisher.publish(number, self._exporter.export(layout, weights))

    def _make_runner(self, digest: str) -> Runner:
        return Runner(self._patcher.patch(self._patcher.plan.layout, self._weights[digest]))

    def _refuse(self, folder: Path) -> EdgeFiles:
        raise AssertionError(f"the task ships its template, yet {folder} was to be converted to")


class Device:
    """One ``fedge-edge`` process that is killed and started again."""

    def __init__(self, folder: Path, registry: str, public_key: Path, broker: str) -> None:
        self.state = folder / "state"
        self.log = folder / "device.log"
        self._settings = [
            f'state_dir="{self.state}"',
            'task.name="fedge.tasks.sensor:Sensor"',
            'node.superlink=""',
            f'registry.address="{registry}"',
            f'registry.release_public_key="{public_key}"',
            "store.max_bytes=1000000000",
            f'mqtt.fleet="{TOPICS.fleet}"',
            f'mqtt.device="{TOPICS.device}"',
            f'mqtt.broker.address="{broker}"',
            "mqtt.broker.reconnect_max_s=0.5",
            f"mqtt.schema.shape={list(TASK.input_shape)}",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        sets = [part for each in self._settings for part in ("--set", each)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge_client", *sets],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_after(self, delay_s: float) -> None:
        """Kill it then; it must not have ended by itself."""
        assert self._process is not None
        with pytest.raises(subprocess.TimeoutExpired):
            self._process.wait(delay_s)
        self._process.kill()
        self._process.wait()

    def wait_ready(self) -> inference_pb2.StatusResponse:
        """Return its status once it answers."""
        found: list[inference_pb2.StatusResponse] = []

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-4000:]
            found.extend(self._status())
            return bool(found)

        wait_until(answers, "the device answers")
        return found[0]

    def _status(self) -> list[inference_pb2.StatusResponse]:
        with client_channel(f"unix:{self.state / 'inference.sock'}", TlsConfig()) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            try:
                return [stub.Status(inference_pb2.StatusRequest(), timeout=5)]
            except grpc.RpcError:
                return []

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def wait_for_all(loads: list[Load]) -> None:
    """Return once each load has had something acknowledged from now on."""
    before = [load.num_acknowledged for load in loads]

    def went_on() -> bool:
        for load in loads:
            load.check()
        return all(
            load.num_acknowledged > number + 1 for load, number in zip(loads, before, strict=True)
        )

    wait_until(went_on, "every load goes on")


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[Versions]:
    versions = Versions(tmp_path)
    yield versions
    versions.stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    with Mosquitto(folder) as broker:
        yield broker


@contextmanager
def running(device: Device) -> Iterator[Device]:
    try:
        yield device
    finally:
        device.end()


def make_loads(device: Device, versions: Versions, broker: Mosquitto) -> list[Load]:
    """Return every source of load on the device."""
    check = versions.check_answer
    return [
        Predictions(device.state / "inference.sock", check),
        Sensor(device.state / "readings.sock", check),
        MqttSamples(broker.port, TOPICS, check),
    ]


def test_kills_at_any_instant_lose_nothing_acknowledged(
    tmp_path: Path, versions: Versions, broker: Mosquitto
) -> None:
    random, start_s = np.random.default_rng(), [1.0]
    device = Device(tmp_path, versions.start(), public_path(versions.key_path), broker.address)
    loads = make_loads(device, versions, broker)
    with running(device):
        for load in loads:
            load.start()
        for number in range(NUM_KILLS):
            seen, began = versions.newest_seen, time.monotonic()
            device.start()
            if number % 3 == 2:  # while it starts
                device.kill_after(random.uniform(0, float(np.median(start_s))))
                continue
            versions.check_served(device.wait_ready().model, at_least=seen)
            start_s.append(time.monotonic() - began)
            wait_for_all(loads)
            device.kill_after(random.uniform(0, BEYOND_READY_S))
        seen = versions.newest_seen
        device.start()
        versions.check_served(device.wait_ready().model, at_least=seen)
        wait_for_all(loads)
        for load in loads:
            load.stop()
        status = device.wait_ready()
        assert device.stop() == 0
    check_store(device, loads, status)
    assert "Traceback" not in device.log.read_text()
    print(
        f"{NUM_KILLS} kills; acknowledged {[load.num_acknowledged for load in loads]}; "
        f"{versions.num_published} versions published, the newest seen {versions.newest_seen}; "
        f"to the first answer {np.median(start_s):.1f} s (median), {max(start_s):.1f} s (longest)"
    )


def check_store(device: Device, loads: list[Load], status: inference_pb2.StatusResponse) -> None:
    """Check that exactly the samples that were acknowledged are stored, each once and whole."""
    expected = {key: kept for load in loads for key, kept in load.expected().items()}
    with SampleReader(device.state / "samples.db", StoreConfig()) as reader:
        samples = list(reader.all())
    found = {each.sample_id: kept_of(each) for each in samples if each is not None}
    assert len(found) == len(samples)
    assert found.keys() == expected.keys()
    assert found == expected
    assert status.samples_labelled + status.samples_unlabelled == len(expected)
