"""A real fedge-edge process without any server, and a systemd that it can talk to."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np

from edge_client.tensors import make_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

DEADLINE_S = 90.0
STOP_S = 60.0


def wait_until(condition: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


class NotifySocket:
    """The datagram socket of a service manager; keeps every assignment in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: list[tuple[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def drain(self) -> list[tuple[str, str]]:
        """Return all that was sent so far."""
        while select.select([self._socket], [], [], 0)[0]:
            for line in self._socket.recv(65536).decode().splitlines():
                name, _, value = line.partition("=")
                self.received.append((name, value))
        return self.received

    def count(self, name: str) -> int:
        return sum(each == name for each, _ in self.drain())

    def close(self) -> None:
        self._socket.close()


class EdgeProcess:
    """One fedge-edge process.

    Args:
        folder: holds its log, and its state unless `state` names another.
        program: what runs in place of ``python -m edge_client``.
        wrapper: command line in front of it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        state: Path | None = None,
        program: Sequence[str] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.state = state or folder / "state"
        self.socket = folder / "edge.sock"
        self.log_path = folder / "edge.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [*wrapper, *(program or (sys.executable, "-m", "edge_client"))]

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def options(self, overrides: Mapping[str, object] | None = None) -> list[str]:
        settings = {
            "state_dir": str(self.state),
            "inference.socket": str(self.socket),
            "node.superlink": "",
            "registry.address": "",
            **(overrides or {}),
        }
        pairs = (f"{key}={json.dumps(value)}" for key, value in settings.items())
        return [part for pair in pairs for part in ("--set", pair)]

    def start(
        self,
        overrides: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command, *self.options(overrides)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def status(self) -> inference_pb2.StatusResponse | None:
        with client_channel(f"unix:{self.socket}", TlsConfig()) as channel:
            try:
                stub = inference_pb2_grpc.InferenceStub(channel)
                return stub.Status(inference_pb2.StatusRequest(), timeout=5)
            except grpc.RpcError:
                return None

    def predict(self, sample_id: str = "") -> inference_pb2.PredictResponse:
        with client_channel(f"unix:{self.socket}", TlsConfig()) as channel:
            request = inference_pb2.PredictRequest(
                input=make_tensor(np.ones(64, np.float32)), sample_id=sample_id
            )
            return inference_pb2_grpc.InferenceStub(channel).Predict(request, timeout=20)

    def wait_until_it_answers(self) -> None:
        def answers() -> bool:
            assert self.is_running, self.log
            return self.status() is not None

        wait_until(answers, "the device answers")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # leaves the stacks of its threads in the log
            self.process.wait(STOP_S)
            raise AssertionError(f"it did not stop:\n{self.log}") from None

    def end(self) -> int:
        """Wait until it ends by itself; return its status."""
        assert self.process is not None
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
