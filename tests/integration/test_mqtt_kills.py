"""A real device, broker and consumer, killed with -9 under load: no prediction is lost."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from benchmarks.mosquitto import Mosquitto
from edge_client.tensors import make_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc
from tests.mqtt_source import Source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLEET, DEVICE = "ward", "box"
RATE = 200.0
NUM_KILLS = 12
BETWEEN_KILLS_S = 1.5
SETTLED_S = 10.0
DEADLINE_S = 200.0
SAMPLES = f"fedge/{FLEET}/{DEVICE}/samples"


def wait_until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


class Process:
    """A child in a session of its own, with its output in a file."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.log_path = folder / f"{name}.log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Device(Process):
    """fedge-edge with the digits model and MQTT, out of training."""

    def __init__(self, folder: Path, port: int, **settings: object) -> None:
        self.state = folder / "state"
        chosen = {
            "state_dir": str(self.state),
            "node.superlink": "",
            "registry.address": "",
            "mqtt.fleet": FLEET,
            "mqtt.device": DEVICE,
            "mqtt.broker.address": f"127.0.0.1:{port}",
            "mqtt.broker.reconnect_max_s": 0.5,
            "mqtt.schema.shape": [64],
            "mqtt.outbox.acknowledge": "consumer",
            "mqtt.outbox.resend_after_s": 5.0,
            **settings,
        }
        sets = [
            part
            for key, value in chosen.items()
            for part in ("--set", f"{key}={json.dumps(value)}")
        ]
        super().__init__(folder, "device", "edge_client", *sets)

    def start(self) -> None:
        super().start()
        wait_until(lambda: self.status() is not None, "the device serves")

    def status(self) -> inference_pb2.StatusResponse | None:
        with client_channel(f"unix:{self.state / 'inference.sock'}", TlsConfig()) as channel:
            try:
                return inference_pb2_grpc.InferenceStub(channel).Status(
                    inference_pb2.StatusRequest(), timeout=5
                )
            except grpc.RpcError:
                return None

    def predict(self) -> inference_pb2.PredictResponse:
        with client_channel(f"unix:{self.state / 'inference.sock'}", TlsConfig()) as channel:
            request = inference_pb2.PredictRequest(input=make_tensor(np.ones(64, np.float32)))
            return inference_pb2_grpc.InferenceStub(channel).Predict(request, timeout=10)

    def problem(self) -> str:
        status = self.status()
        return "no status" if status is None else status.problem

    def outbox(self) -> dict[str, int]:
        """Read the totals of the outbox, with nothing but SQLite."""
        with sqlite3.connect(f"file:{self.state / 'outbox.db'}?mode=ro", uri=True) as connection:
            connection.row_factory = sqlite3.Row
            return dict(connection.execute("SELECT * FROM totals").fetchone())

    def samples(self) -> int:
        with sqlite3.connect(f"file:{self.state / 'samples.db'}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM samples").fetchone()[0])


class Load:
    """Sends numbered samples at a steady rate while it is let."""

    def __init__(self, source: Source) -> None:
        self.num_sent = 0
        self._source = source
        self._stop = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._input = (np.arange(64) % 17 / 17).astype("<f4").tobytes()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def go_on_for(self, seconds: float) -> None:
        target = self.num_sent + seconds * RATE
        wait_until(lambda: self.num_sent >= target, "load")

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._going.clear()
        yield
        self._going.set()

    def send(self, sequence: int) -> None:
        number = {"source": "s", "sequence": str(sequence)}
        self._source.send(SAMPLES, self._input, number, content_type="application/octet-stream")

    def _run(self) -> None:
        due, before = 0.0, time.monotonic()
        while not self._stop.wait(0.005):
            now = time.monotonic()
            due += (now - before) * RATE if self._going.is_set() else 0.0
            before = now
            while self.num_sent < due:
                self.send(self.num_sent)
                self.num_sent += 1


def read_predictions(path: Path) -> list[tuple[int, int]]:
    """Return (sequence, source_sequence) of every kept prediction."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT sequence, body FROM predictions ORDER BY sequence")
        return [(sequence, json.loads(body)["source_sequence"]) for sequence, body in rows]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def device(tmp_path: Path, broker: Mosquitto) -> Iterator[Device]:
    made = Device(tmp_path, broker.port)
    made.start()
    wait_until(lambda: not made.problem(), "the device is connected")
    yield made
    made.kill()


@pytest.fixture
def consumer(tmp_path: Path, broker: Mosquitto) -> Iterator[Process]:
    made = Process(
        tmp_path,
        "consumer",
        *("tests.mqtt_consumer_process", str(broker.port), FLEET, str(tmp_path / "kept.db")),
    )
    made.start()
    yield made
    made.kill()


def check_nothing_lost(device: Device, path: Path, load: Load) -> None:
    """Compare what was made with what came; say what the broker lost on the way to the device.

    mosquitto acknowledges before it saves, so a source that sends a sample once may lose it.
    """

    def progress() -> tuple[int, int]:
        return device.outbox()["kept"], len(read_predictions(path))

    settled_at, before = time.monotonic(), progress()
    while time.monotonic() < settled_at + SETTLED_S or device.outbox()["waiting"]:
        assert time.monotonic() < settled_at + DEADLINE_S, "the outbox does not empty"
        time.sleep(0.1)
        if (now := progress()) != before:
            settled_at, before = time.monotonic(), now
    totals, kept = device.outbox(), read_predictions(path)
    assert totals["dropped"] == totals["refused"] == 0
    assert len(kept) == totals["kept"], "predictions that were made and never came"
    answered = {number for _, number in kept}
    assert len(answered) == len(kept), "samples that were answered twice"
    assert device.samples() == len(kept)
    num_lost = load.num_sent - len(answered)
    print(f"{load.num_sent} samples sent, {num_lost} lost before the device, {totals}")
    assert num_lost <= load.num_sent // 20


def test_a_broker_killed_twelve_times_under_load_loses_no_prediction(
    tmp_path: Path, broker: Mosquitto, device: Device, consumer: Process
) -> None:
    with Source(broker.port) as source:
        load = Load(source)
        load.start()
        try:
            for _ in range(NUM_KILLS):
                load.go_on_for(BETWEEN_KILLS_S)
                broker.kill()
                assert device.predict().latency_us > 0  # whatever happens to the broker
                broker.start()
        finally:
            load.stop()
        check_nothing_lost(device, tmp_path / "kept.db", load)


def test_everyone_is_killed_in_turn_and_nothing_is_lost(
    tmp_path: Path, broker: Mosquitto, device: Device, consumer: Process
) -> None:
    with Source(broker.port) as source:
        load = Load(source)
        load.start()
        try:
            for victim in (consumer, device, broker) * 3:
                load.go_on_for(BETWEEN_KILLS_S)
                victim.kill()
                with load.paused():  # a device takes half a minute to start on a busy machine
                    victim.start()
        finally:
            load.stop()
        check_nothing_lost(device, tmp_path / "kept.db", load)
