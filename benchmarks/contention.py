"""What predictions cost while the device trains, and while the daemon is busy with other work."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np

from benchmarks.contention_device import (
    BATCH_SIZE,
    NUM_PARAMETERS,
    TOPICS,
    DeviceSettings,
    percentiles,
)
from benchmarks.contention_registry import HIDDEN, KEY_NAME, ORDERS
from benchmarks.harness import CannotRun, progress
from benchmarks.mosquitto import Mosquitto
from edge_client.tensors import make_tensor
from fedge.channels import client_channel
from fedge.settings import TlsConfig
from protos.fedge.v1 import inference_pb2, inference_pb2_grpc
from server.release_key import public_path

NUM_TURNS = 7
PART_S = 4.0
"""Seconds in which the engine is asked, and again the service."""
REQUESTS_PER_S = 400.0
CALLS_PER_S = 200.0
MESSAGES_PER_S = 200.0
VERSION_EACH_S = 1.7
"""As long as 10 MB take over a link of 50 Mbit/s."""
BROKER = ["persistence false", "max_inflight_messages 1000", "max_queued_messages 0"]
"""It stands for another machine: saving on every change would take this one's disk and cores."""
_MARGIN_S = 0.3


@dataclass(frozen=True)
class Phase:
    """What goes on beside the predictions.

    Attributes:
        training: name of a training process; empty for none.
        busy: a version of another model is fetched and installed every `VERSION_EACH_S`, while
            samples come in over MQTT.
        asks: whether predictions are asked for at all.
    """

    training: str = ""
    busy: bool = False
    asks: bool = True


PHASES = {
    "idle": Phase(),
    "training": Phase("lowest"),
    "training_alone": Phase("lowest", asks=False),
    "same_priority": Phase("equal"),
    "busy": Phase(busy=True),
    "busy_training": Phase("lowest", busy=True),
}


class _Process:
    """A child that answers each line with a line."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def hear(self) -> Any:
        """Return the next line it says.

        Raises:
            CannotRun: it ended.
        """
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise CannotRun(f"{self._child.args!r} ended with status {self._child.wait()}")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have a command done and return what it says."""
        self.tell(json.dumps({"do": do, **arguments}))
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it with its standard input; one that stays on is killed."""
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def measure(*, quick: bool) -> dict[str, Any]:
    num_turns, part_s = (1, 0.5) if quick else (NUM_TURNS, PART_S)
    cores = len(os.sched_getaffinity(0))
    deadline_s = 2 * part_s + _MARGIN_S
    every: dict[str, Any] = {"num_threads": cores, "deadline_s": deadline_s}
    trainings = {"lowest": every, "equal": {**every, "nice": 0, "cores": "all"}}
    with _device(trainings) as bench:
        turns = []
        for turn in range(num_turns):
            names = list(PHASES)
            order = names[turn % len(names) :] + names[: turn % len(names)]
            turns.append({name: bench.measure(PHASES[name], part_s) for name in order})
            progress(f"turn {turn}: " + ", ".join(f"{n} {_said(turns[-1][n])}" for n in names))
    return {
        "setup": (
            f"a CNN of {NUM_PARAMETERS:,} parameters on 28x28 (TFLite, one thread) asked at "
            f"{REQUESTS_PER_S:g} random instants a second in the daemon's process, then "
            f"{CALLS_PER_S:g} over its Unix socket; DP-SGD of the same CNN, expected batch "
            f"{BATCH_SIZE}, on {cores} threads; busy: an MLP of 10 MB ({HIDDEN} hidden units) "
            f"downloaded, decoded, verified, patched and loaded every {VERSION_EACH_S:g} s while "
            f"{MESSAGES_PER_S:g} images a second come over MQTT (QoS 1, a mosquitto that keeps "
            "nothing, for another machine's), are predicted and committed, and their predictions "
            "published; busy_training: training beside all that; "
            f"medians over {num_turns} interleaved turns of {part_s:g} s each"
        ),
        **_summary(turns),
        "turns": turns,
    }


def _summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    def p99(phase: str, part: str) -> float:
        return float(statistics.median(turn[phase][part]["p99"] for turn in turns))

    def median(phase: str, key: str) -> float:
        return float(statistics.median(turn[phase][key] for turn in turns))

    def ratio(phase: str, part: str) -> float:
        ratios = [turn[phase][part]["p99"] / turn["idle"][part]["p99"] for turn in turns]
        return float(statistics.median(ratios))

    def speed(phase: str) -> float:
        alone = [turn["training_alone"]["steps_per_s"] for turn in turns]
        speeds = [turn[phase]["steps_per_s"] for turn in turns]
        return float(np.median(np.array(speeds) / np.array(alone)))

    return {
        "p99_idle_ms": p99("idle", "engine"),
        "p99_training_ms": p99("training", "engine"),
        "p99_ratio": ratio("training", "engine"),
        "p99_ratio_same_priority": ratio("same_priority", "engine"),
        "p99_ratio_busy_daemon": ratio("busy", "engine"),
        "p99_ratio_busy_training": ratio("busy_training", "engine"),
        "training_speed_kept": speed("training"),
        "training_speed_kept_same_priority": speed("same_priority"),
        "grpc_p99_idle_ms": p99("idle", "grpc"),
        "grpc_p99_training_ms": p99("training", "grpc"),
        "grpc_p99_ratio": ratio("training", "grpc"),
        "grpc_p99_ratio_same_priority": ratio("same_priority", "grpc"),
        "grpc_p99_ratio_busy_daemon": ratio("busy", "grpc"),
        "grpc_p99_ratio_busy_training": ratio("busy_training", "grpc"),
        "messages_per_s": median("busy", "messages_per_s"),
        "messages_per_s_training": median("busy_training", "messages_per_s"),
        "versions": sum(turn["busy"]["versions"] for turn in turns),
    }


def _said(result: dict[str, Any]) -> str:
    if "engine" not in result:
        return f"{result['steps_per_s']:.1f} steps/s"
    return f"{result['engine']['p99']:.3f}/{result['grpc']['p99']:.2f} ms"


class _Bench:
    """A device, a sensor that sends it images, and somebody who asks it for predictions."""

    def __init__(self, device: _Process, sensor: _Process, address: str) -> None:
        self._device = device
        self._sensor = sensor
        self._stub = inference_pb2_grpc.InferenceStub(client_channel(address, TlsConfig()))
        self._rng = np.random.default_rng(1)
        image = self._rng.random((1, 28, 28), np.float32)
        self._request = inference_pb2.PredictRequest(input=make_tensor(image))

    def measure(self, phase: Phase, part_s: float) -> dict[str, Any]:
        """Return what predictions and training came to in one phase."""
        each_s = VERSION_EACH_S if phase.busy else None
        if phase.busy:
            self._sensor.ask("start", messages_per_s=MESSAGES_PER_S)
        self._device.ask("begin", training=phase.training, version_each_s=each_s)
        found: dict[str, Any] = {}
        if phase.asks:
            found["engine"] = self._device.ask("engine", seconds=part_s)
            found["grpc"] = self._ask_service(part_s)
        found |= self._device.ask("taken")
        found |= self._device.ask("end", **self._sensor.ask("stop"))
        return found

    def _ask_service(self, part_s: float) -> dict[str, Any]:
        taken = []
        end = time.perf_counter() + part_s
        while time.perf_counter() < end:
            time.sleep(self._rng.exponential(1 / CALLS_PER_S))
            before = time.perf_counter()
            try:
                self._stub.Predict(self._request, timeout=30)
            except grpc.RpcError as error:
                raise CannotRun(f"the device does not answer: {error}") from error
            taken.append(time.perf_counter() - before)
        return percentiles(taken)


@contextmanager
def _device(trainings: dict[str, dict[str, Any]]) -> Iterator[_Bench]:
    """Start the broker, the registry, the device and the sensor."""
    with tempfile.TemporaryDirectory(prefix="fedge-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "broker").mkdir()
        broker = stack.enter_context(Mosquitto(folder / "broker", BROKER, verbose=False))
        os.mkfifo(folder / ORDERS)
        registry = stack.enter_context(_Process("benchmarks.contention_registry", name))
        port = registry.hear()
        settings = DeviceSettings(
            folder=name,
            registry=f"127.0.0.1:{port}",
            orders=str(folder / ORDERS),
            release_key=str(public_path(folder / KEY_NAME)),
            broker=broker.address,
            trainings=trainings,
            requests_per_s=REQUESTS_PER_S,
        )
        device = stack.enter_context(_Process("benchmarks.contention_device"))
        device.tell(json.dumps(asdict(settings)))
        device.hear()
        sensor = stack.enter_context(
            _Process("benchmarks.contention_source", str(broker.port), TOPICS.samples)
        )
        sensor.hear()
        bench = _Bench(device, sensor, f"unix:{folder / 'inference.sock'}")
        for phase in PHASES.values():  # once for what is slow the first time
            bench.measure(phase, 0.5)
        yield bench
