"""What a device's prediction service is compared with, in processes of their own.

``python -m benchmarks.prediction_servers echo unix:PATH`` answers at once with bytes of the same
size; ``cloud HOST:PORT DELAY_MS`` serves the digits model behind a delay. They end with their
standard input.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

import fedge.tasks
from benchmarks.harness import CannotRun
from edge_client.inference import Serving
from edge_client.model_store import load_bundled
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService
from edge_client.settings import StoreConfig
from fedge.channels import add_address, make_server
from fedge.settings import TlsConfig
from fedge.task import EdgeFiles
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc

NUM_HANDLERS = 8
ECHO_METHOD = "/fedge.benchmarks.Echo/Call"
READY = b"ready"
_START_S = 60.0
_ANSWER = b"\0" * 128  # a digits prediction with its version


class _Cloud(InferenceService):
    """The same service, as far away as the delay says."""

    def __init__(self, delay_s: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._delay_s = delay_s

    def Predict(  # noqa: N802
        self, request: inference_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictResponse:
        time.sleep(self._delay_s)
        return super().Predict(request, context)


@contextmanager
def server_process(*arguments: str) -> Iterator[str]:
    """Run one of this module's servers; yield what it says beside that it is ready.

    Raises:
        CannotRun: it does not start.
    """
    command = [sys.executable, "-m", "benchmarks.prediction_servers", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            raise CannotRun(f"{' '.join(arguments)} does not start")
        yield line.decode().split()[-1]
        process.stdin.close()


def _echo(_: bytes, __: grpc.ServicerContext) -> bytes:
    return _ANSWER


def _run(address: str, register: Callable[[grpc.Server], None]) -> None:
    server = make_server(NUM_HANDLERS)
    register(server)
    port = add_address(server, address, TlsConfig())
    server.start()
    print(READY.decode(), port, flush=True)
    sys.stdin.read()
    server.stop(0).wait()


def _run_echo(address: str) -> None:
    handler = grpc.unary_unary_rpc_method_handler(_echo)
    _, service, method = ECHO_METHOD.split("/")
    handlers = grpc.method_handlers_generic_handler(service, {method: handler})
    _run(address, lambda server: server.add_generic_rpc_handlers((handlers,)))


def _run_cloud(address: str, delay_s: float) -> None:
    folder = Path(fedge.tasks.__file__).parent / "digits_edge"
    files = EdgeFiles(folder / "template.tflite", folder / "plan.json")
    with (
        tempfile.TemporaryDirectory() as samples_folder,
        SampleDatabase(Path(samples_folder) / "samples.db", StoreConfig()) as samples,
    ):
        service = _Cloud(delay_s, Serving(load_bundled(files)), samples, DeviceStatus)
        _run(
            address,
            lambda server: inference_pb2_grpc.add_InferenceServicer_to_server(service, server),
        )


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        _run_echo(sys.argv[2])
    else:
        _run_cloud(sys.argv[2], float(sys.argv[3]) / 1000)
