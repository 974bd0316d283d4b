"""A `fedge-edge` process that benchmarks ask for predictions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from benchmarks.harness import CannotRun
from edge_client.tensors import make_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0
DIGITS = inference_pb2.PredictRequest(input=make_tensor(np.linspace(0, 1, 64, dtype=np.float32)))


@dataclass(frozen=True)
class EdgeDaemon:
    """A running daemon.

    Attributes:
        address: of its Unix socket, for gRPC.
        first_answer_s: from the start of its process to its first prediction.
    """

    pid: int
    address: str
    first_answer_s: float

    @property
    def rss_mb(self) -> float:
        """Resident memory, in millions of bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        [kib] = [line.split()[1] for line in lines if line.startswith("VmRSS")]
        return int(kib) * 1024 / 1e6


@contextmanager
def edge_daemon(
    folder: Path, python: str = sys.executable, **settings: str
) -> Iterator[EdgeDaemon]:
    """Start a daemon that only predicts digits, and wait for its first answer.

    Args:
        folder: of its state and its log.
        python: interpreter of its environment.
        settings: further keys; a double underscore is a dot.

    Raises:
        CannotRun: it does not answer.
    """
    keys = {
        "state_dir": str(folder / "state"),
        "node.superlink": "",
        "registry.address": "",
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    address = f"unix:{folder / 'state' / 'inference.sock'}"
    log = folder / "daemon.log"
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [python, "-m", "edge_client", *sets],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for_answer(process, address, log)
        yield EdgeDaemon(process.pid, address, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_for_answer(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    socket = Path(address.removeprefix("unix:"))
    give_up = time.monotonic() + START_S
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > give_up:
            raise CannotRun(f"the device does not start: {log.read_text()[-500:]}")
        time.sleep(0.001)
    with client_channel(address, TlsConfig()) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        try:
            stub.Predict(DIGITS, timeout=START_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CannotRun(f"the device does not answer: {error}") from error
