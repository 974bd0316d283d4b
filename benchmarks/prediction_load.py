"""Clients that ask one device as fast as it answers: ``ADDRESS NUM_CLIENTS SECONDS``.

They share a process; a channel each. The last line is how many calls were answered and how many
were not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import grpc

from benchmarks.edge_daemon import DIGITS
from benchmarks.harness import CannotRun
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2_grpc

_FIRST_S = 30.0
MAX_PROCESSES = 2  # one alone is slower than the device


def requests_per_s(address: str, num_clients: int, seconds: float) -> float:
    """Return what so many clients get, in one process or two.

    Raises:
        CannotRun: a call failed.
    """
    num_processes = min(MAX_PROCESSES, num_clients)
    command = [sys.executable, "-m", "benchmarks.prediction_load", address]
    command += [str(num_clients // num_processes), str(seconds)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(num_processes)
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise CannotRun(f"{address}: {num_clients} clients cannot ask it")
    results = [json.loads(text.splitlines()[-1]) for text in printed]
    if any(result["failed"] for result in results):
        raise CannotRun(f"{address}: {results} of {num_clients} clients")
    return float(sum(result["answered"] / result["seconds"] for result in results))


def _ask(address: str, ready: threading.Barrier, seconds: float, counts: dict[str, int]) -> None:
    with client_channel(address, TlsConfig()) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        try:
            stub.Predict(DIGITS, timeout=_FIRST_S)
            ready.wait()
        except grpc.RpcError:
            ready.abort()
            return
        except threading.BrokenBarrierError:
            return
        end = time.monotonic() + seconds
        answered = failed = 0
        while time.monotonic() < end:
            try:
                stub.Predict(DIGITS, timeout=30)
                answered += 1
            except grpc.RpcError:
                failed += 1
        counts["answered"] = answered
        counts["failed"] = failed


def main() -> None:
    """Ask, and print what came of it."""
    address, num_clients, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    ready = threading.Barrier(num_clients)
    counts: list[dict[str, int]] = [{} for _ in range(num_clients)]
    threads = [
        threading.Thread(target=_ask, args=(address, ready, seconds, each)) for each in counts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if ready.broken:
        sys.exit(f"{address} does not answer")
    total = {key: sum(each.get(key, 0) for each in counts) for key in ("answered", "failed")}
    print(json.dumps({**total, "seconds": seconds}))


if __name__ == "__main__":
    main()
