"""fedge-edge with a real SuperLink: it predicts, connects, survives outages and stops cleanly."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from edge_client.tensors import make_tensor
from fedge.channels import client_channel
from fedge.children import QUIET_ENVIRONMENT
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DEADLINE_S = 90.0
STOP_S = 5.0


def wait_until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def end_session(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


class SuperLink:
    """Flower's server process, without an app."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(sys.executable).parent / "flower-superlink"
        with (self.folder / "superlink.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(program), "--insecure", "--port", str(self.port)),
                    *("--isolation", "process", "--disable-runtime-dependency-installation"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **QUIET_ENVIRONMENT, "FLWR_HOME": str(self.folder / "flwr")},
            )

    def kill(self) -> None:
        if self.process is not None:
            end_session(self.process)
            self.process = None


class Device:
    """One fedge-edge process in a folder of its own."""

    def __init__(self, folder: Path, superlink: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.superlink = superlink
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "device.log").read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        settings = {
            "state_dir": self.state,
            "node.superlink": self.superlink,
            "node.reconnect_max_s": 0.5,
            "registry.address": "",
        }
        sets = [part for key, value in settings.items() for part in ("--set", f'{key}="{value}"')]
        sets = [part.replace('"0.5"', "0.5") for part in sets]
        with (self.folder / "device.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_client", *sets],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def status(self) -> inference_pb2.StatusResponse | None:
        with client_channel(f"unix:{self.state / 'inference.sock'}", TlsConfig()) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            try:
                return stub.Status(inference_pb2.StatusRequest(), timeout=2)
            except grpc.RpcError:
                return None

    def problem(self) -> str:
        status = self.status()
        return "" if status is None else status.problem

    def predict(self) -> inference_pb2.PredictResponse:
        with client_channel(f"unix:{self.state / 'inference.sock'}", TlsConfig()) as channel:
            request = inference_pb2.PredictRequest(input=make_tensor(np.ones(64, np.float32)))
            return inference_pb2_grpc.InferenceStub(channel).Predict(request, timeout=5)

    def is_connected(self) -> bool:
        status = self.status()
        return status is not None and status.connected

    def children(self) -> list[int]:
        return [
            int(child)
            for thread in Path(f"/proc/{self.pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        if self.process is not None:
            end_session(self.process)


def run_device(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a device that is expected to end by itself; the first argument is set."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "edge_client", "--set", "registry.address=", "--set"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[SuperLink]:
    link = SuperLink(tmp_path)
    yield link
    link.kill()


@pytest.fixture
def device(tmp_path: Path, superlink: SuperLink) -> Iterator[Device]:
    device = Device(tmp_path, f"127.0.0.1:{superlink.port}")
    yield device
    device.kill()


def test_a_device_predicts_without_a_server_and_connects_when_there_is_one(
    superlink: SuperLink, device: Device
) -> None:
    device.start()
    wait_until(device.status, "the device answers")
    prediction = device.predict()
    assert prediction.model.round == 0
    assert len(prediction.output.data) == 40
    wait_until(lambda: "cannot be reached" in device.problem(), "the problem is said")
    status = device.status()
    assert status is not None
    assert not status.connected
    assert (status.epsilon, status.delta) == (0.0, 1e-5)

    superlink.start()
    wait_until(device.is_connected, "connected")
    superlink.kill()
    wait_until(lambda: not device.is_connected(), "the outage is noticed")
    assert device.predict().model.round == 0
    superlink.start()
    wait_until(device.is_connected, "connected to a SuperLink that forgot this node")

    children = device.children()
    assert len(children) == 1
    maps = Path(f"/proc/{device.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "libtorch" in Path(f"/proc/{children[0]}/maps").read_text()
    assert device.stop() == 0
    wait_until(lambda: is_gone(children[0]), "the child is gone", STOP_S)
    assert not (device.state / "inference.sock").exists()
    assert not (device.state / "node.session").exists()
    assert "Traceback" not in device.log


def test_a_killed_device_comes_back_as_the_same_node_at_once(
    superlink: SuperLink, device: Device
) -> None:
    superlink.start()
    device.start()
    wait_until(device.is_connected, "connected")
    node_id = (device.state / "node.session").read_text()
    [child] = device.children()
    device.kill()
    wait_until(lambda: is_gone(child), "the child is gone", STOP_S)
    device.start()
    wait_until(device.is_connected, "connected again", within_s=30)
    assert (device.state / "node.session").read_text() == node_id
    assert "taking over the session" in device.log


def test_a_second_daemon_on_the_same_folder_is_refused(device: Device) -> None:
    device.start()
    wait_until(device.status, "the device answers")
    second = run_device(f"state_dir={device.state}")
    assert second.returncode == 2
    assert f"in use by another daemon (process {device.pid})" in second.stderr
    assert device.status() is not None


def test_ctrl_c_while_starting_stops_at_once_without_orphans(device: Device) -> None:
    device.start()
    wait_until(lambda: (device.state / "samples.db").exists(), "the device is starting")
    wait_until(device.children, "the child is started")
    children = device.children()
    device.stop(signal.SIGINT)
    wait_until(lambda: all(is_gone(child) for child in children), "no orphan", STOP_S)
    assert "Traceback" not in device.log


def test_check_loads_everything_and_starts_nothing(tmp_path: Path) -> None:
    result = run_device(f"state_dir={tmp_path / 'state'}", "--check")
    assert result.returncode == 0
    assert "configuration is fine: task digits" in result.stdout
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("privacy.epsilon=0", "privacy.epsilon: must be > 0"),
        ("registry.release_public_key=/nowhere.pub", "registry.release_public_key: cannot read"),
        ("task.name=nothing:Here", "task.name: 'nothing:Here' cannot be loaded"),
        ("node.superlink=example.org:9092", "node.superlink: example.org:9092 is not on loopback"),
    ],
)
def test_what_is_misconfigured_is_one_line_that_names_the_key(
    tmp_path: Path, override: str, text: str
) -> None:
    result = run_device(f"state_dir={tmp_path / 'state'}", "--set", override)
    assert result.returncode == 2
    assert text in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
