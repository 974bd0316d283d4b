"""fedge-server with Flower's real processes: it finishes, resumes, fails and stops as it should."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedge.channels import client_channel
from fedge.manifest import ModelManifest, verify
from fedge.protocol import PROTOCOL_VERSION
from fedge.settings import TlsConfig
from protos.fedge.v1.registry_pb2 import WatchRequest
from protos.fedge.v1.registry_pb2_grpc import ModelRegistryStub
from server.checkpoint import CheckpointStore
from server.processes import Process, all_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DEADLINE_S = 120.0
STOP_S = 10.0
STAND_IN = """
import server.app_bundle
server.app_bundle.SERVER_APP = "stand_in_server_app:app"
server.app_bundle.CLIENT_APP = "stand_in_server_app:client"
from server.cli import main
main()
"""


def wait_until(condition: Callable[[], bool], within_s: float = DEADLINE_S) -> float:
    """Return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + within_s, "the condition did not come true in time"
        time.sleep(0.05)
    return time.monotonic() - began


class Server:
    """One fedge-server in a folder, with ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.registry_port = free_ports()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, stand_in: bool = True, num_rounds: int = 3) -> None:
        program = ["-c", STAND_IN] if stand_in else ["-m", "server"]
        settings = {
            "run_dir": self.folder,
            "superlink.port": self.port,
            "registry.address": f"127.0.0.1:{self.registry_port}",
            "rounds.num_rounds": num_rounds,
        }
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, *sets, *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            )

    def wait(self, within_s: float = DEADLINE_S) -> int:
        assert self.process is not None
        return self.process.wait(within_s)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def events(self, kind: str) -> list[dict[str, object]]:
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def flower_processes(self, name: str = "") -> list[Process]:
        """Every process that serves or uses our SuperLink's port, wherever it was reparented."""
        return [
            process
            for process in all_processes()
            if process.state != "Z" and name in process.command and self._ours(process)
        ]

    def _ours(self, process: Process) -> bool:
        arguments = process.command.split("\0")
        ports = (str(self.port), f"127.0.0.1:{self.port}")
        return any(argument in ports for argument in arguments)

    def first_manifest(self) -> ModelManifest:
        """Return the version that the registry serves, verified against the public half."""
        public_half = self.folder / "release.key.pub"
        wait_until(public_half.exists)
        public = load_pem_public_key(public_half.read_bytes())
        with client_channel(f"127.0.0.1:{self.registry_port}", TlsConfig()) as channel:
            stream = ModelRegistryStub(channel).Watch(
                WatchRequest(protocol=PROTOCOL_VERSION, device="test"),
                timeout=DEADLINE_S,
                wait_for_ready=True,
            )
            signed = next(iter(stream))
            stream.cancel()  # type: ignore[no-untyped-call]
        return verify(signed.manifest, signed.signature, public)  # type: ignore[arg-type]

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.flower_processes():
            os.kill(process.pid, signal.SIGKILL)


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.clean_up()


def published_rounds(folder: Path) -> list[int]:
    records = [
        json.loads(path.read_text()) for path in sorted((folder / "registry/versions").iterdir())
    ]
    return [ModelManifest.from_bytes(record["manifest"].encode()).round for record in records]


def test_a_run_survives_kills_of_server_app_and_superlink_and_publishes_its_last_round(
    server: Server,
) -> None:
    (server.folder / "hold").touch()
    server.start("--exit-when-done")
    checkpoints = CheckpointStore(server.folder / "checkpoints")
    wait_until(lambda: checkpoints.latest_round() == 0)
    (app,) = server.flower_processes("flwr-serverapp")
    os.kill(app.pid, signal.SIGKILL)
    wait_until(lambda: len(server.events("run-started")) == 2)

    (superlink,) = server.flower_processes("flower-superlink")
    os.kill(superlink.pid, signal.SIGKILL)
    wait_until(lambda: len(server.events("run-started")) == 3)
    assert len(server.flower_processes("flower-superlink")) == 1
    assert len(server.flower_processes("flwr-serverapp")) == 1

    (server.folder / "hold").unlink()
    assert server.wait() == 0, server.log
    assert [event["first"] for event in server.events("run-started")] == [0, 1, 1]
    assert published_rounds(server.folder)[-1] == 3
    assert server.flower_processes() == []
    assert "the run is complete after round 3" in server.log


def test_the_real_server_app_runs_from_the_installed_package_and_ctrl_c_leaves_nothing(
    server: Server,
) -> None:
    server.start(stand_in=False)
    manifest = server.first_manifest()
    assert (manifest.round, manifest.task) == (0, "digits")
    apps = [path for path in (server.folder / "flower/apps").rglob("*") if path.is_file()]
    assert [path.name for path in apps] == ["pyproject.toml"]
    assert len(server.flower_processes()) >= 3

    server.signal(signal.SIGINT)
    took_s = wait_until(lambda: server.process is not None and server.process.poll() is not None)
    assert took_s < STOP_S
    assert server.wait() == 0, server.log
    assert server.flower_processes() == []


def test_a_killed_supervisor_leaves_no_process_and_its_run_resumes_and_stays_served(
    server: Server,
) -> None:
    (server.folder / "hold").touch()
    server.start("--exit-when-done", num_rounds=1)
    checkpoints = CheckpointStore(server.folder / "checkpoints")
    wait_until(lambda: checkpoints.latest_round() == 0)
    server.signal(signal.SIGKILL)
    server.wait()
    wait_until(lambda: server.flower_processes("flower-superlink") == [], within_s=STOP_S)
    wait_until(lambda: server.flower_processes() == [], within_s=3 * STOP_S)

    (server.folder / "hold").unlink()
    server.start(num_rounds=1)
    wait_until(lambda: "serving its last version until stopped" in server.log)
    assert [event["first"] for event in server.events("run-started")] == [0, 1]
    assert server.first_manifest().round == 1
    server.signal(signal.SIGTERM)
    assert server.wait(STOP_S) == 0, server.log
    assert server.flower_processes() == []


def test_a_failed_run_ends_with_status_1_and_its_reason(server: Server) -> None:
    (server.folder / "fail").touch()
    server.start()
    assert server.wait() == 1, server.log
    assert "the run failed: told to fail" in server.log
    assert "told to fail, with a traceback" in (server.folder / "serverapp.log").read_text()
    assert server.flower_processes() == []


def test_a_taken_port_is_one_line_and_nothing_is_started(server: Server) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        server.start()
        assert server.wait() == 2
    lines = [line for line in server.log.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"superlink.port: cannot use port {server.port}" in lines[0]
    assert not (server.folder / "superlink.log").exists()
