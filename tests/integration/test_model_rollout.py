"""fedge-edge and its versions: killed again and again, told what to serve while it runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_client.tensors import make_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc, registry_pb2
from tests.unit.edge_client.fake_registry import KEY, Registry, make_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DEADLINE_S = 90.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


class Device:
    """One fedge-edge process that takes versions and does not train."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        key = folder / "release.key.pub"
        key.write_bytes(
            KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        self.config = folder / "edge.toml"
        self.config.write_text(
            f'state_dir = "{folder}/state"\n[node]\nsuperlink = ""\n[registry]\n'
            f'address = "127.0.0.1:{port}"\nrelease_public_key = "{key}"\n'
        )

    @property
    def log(self) -> str:
        return (self.folder / "device.log").read_text()

    def start(self) -> None:
        with (self.folder / "device.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_client", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
            self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10.0)

    def round(self) -> int | None:
        """Return the round that answers a prediction; None while nobody answers."""
        with client_channel(f"unix:{self.folder}/state/inference.sock", TlsConfig()) as channel:
            request = inference_pb2.PredictRequest(input=make_tensor(np.ones(64, np.float32)))
            try:
                answer = inference_pb2_grpc.InferenceStub(channel).Predict(request, timeout=2)
            except grpc.RpcError:
                return None
        return int(answer.model.round)

    def wait_for(self, round: int) -> None:
        wait_until(lambda: self.round() == round, f"round {round} answers:\n{self.log}")

    def model(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "edge_client", "model", *arguments, "--config", self.config],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    registry.start()
    yield registry
    registry.kill()


@pytest.fixture
def device(tmp_path: Path, registry: Registry) -> Iterator[Device]:
    device = Device(tmp_path, registry.port)
    yield device
    device.kill()


def test_kills_from_outside_are_not_held_against_a_version(
    registry: Registry, device: Device
) -> None:
    for round in (1, 2):
        registry.publish(make_version(registry, round))
        device.start()
        device.wait_for(round)
        device.kill()
    for _ in range(4):
        device.start()
        device.wait_for(2)
        device.kill()
    assert "crashed" not in device.log


def test_a_version_that_the_daemon_dies_under_is_left_and_the_server_hears_of_it(
    registry: Registry, device: Device
) -> None:
    registry.publish(make_version(registry, 1))
    device.start()
    device.wait_for(1)
    assert device.stop() == 0
    registry.publish(make_version(registry, 2))
    for _ in range(3):
        device.start()
        device.wait_for(2)
        device.kill(signal.SIGABRT)
    device.start()
    device.wait_for(1)
    assert "the last process crashed:" in device.log
    stacks = (device.folder / "state" / "last-crash.txt").read_text()
    assert stacks.startswith("Fatal Python error: Aborted")
    wait_until(
        lambda: registry_pb2.FATE_ROLLED_BACK in [report.fate for report in registry.reports],
        "the server is told",
    )
    # Offered again, it is not taken again; the next one is.
    wait_until(lambda: "was refused here" in device.log, "the refusal is said")
    assert device.round() == 1
    registry.publish(make_version(registry, 3))
    device.wait_for(3)
    assert device.stop() == 0
    assert "Traceback" not in device.log


def test_a_person_pins_unpins_and_goes_back_beside_a_running_daemon(
    registry: Registry, device: Device
) -> None:
    device.start()
    for round in (1, 2):
        registry.publish(make_version(registry, round))
        device.wait_for(round)
    assert "round 2 of run" in device.model("list").splitlines()[0]
    device.model("pin", "1")
    device.wait_for(1)
    registry.publish(make_version(registry, 3))
    device.kill()
    device.start()
    device.wait_for(1)
    device.model("pin", "--off")
    device.wait_for(3)
    device.model("rollback")
    wait_until(lambda: device.round() in (1, 2), "the version before answers")
    device.stop()
    assert "refused: left by hand" in device.model("list")
    device.model("pin", "3")
    device.start()
    device.wait_for(3)
