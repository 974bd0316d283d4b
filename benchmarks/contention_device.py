"""The device that is measured: its predictions are timed in it, beside what it is told to do.

``python -m benchmarks.contention_device``: the first line of standard input is its settings (JSON),
each further one a command: a method of `Device`. Each is answered with one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.engine_maker import EngineMaker
from edge_client.inference import Serving, Version
from edge_client.model_store import ModelStore
from edge_client.mqtt.part import MqttPart
from edge_client.mqtt.settings import MqttConfig, SchemaConfig
from edge_client.process_worker import ProcessWorker
from edge_client.registry_client import RegistryClient
from edge_client.release_public_key import load_release_key
from edge_client.responsive import be_responsive
from edge_client.rollout import Rollout
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import (
    InferenceConfig,
    ModelsConfig,
    RegistryClientConfig,
    StoreConfig,
    TrainingProcessConfig,
)
from edge_client.window_stream import WindowStream
from edge_client.worker_frames import ProcessSettings
from fedge.errors import ModelError
from fedge.mqtt.settings import BrokerConfig
from fedge.mqtt.topics import DeviceTopics
from fedge.params import vector_digest
from fedge.privacy.planning import DpPlan
from fedge.settings import Hyperparameters, TaskConfig
from fedge.tflite.patch import Patcher

MODEL = Path(__file__).parent / "models" / "cnn"
TASK = TaskConfig(
    "benchmarks.tasks.small_models:SmallModel",
    {"model": "cnn", "num_clients": 1, "num_examples": 1},
)
NUM_PARAMETERS = 114_314
NUM_EXAMPLES, BATCH_SIZE = 640, 64
TOPICS = DeviceTopics("contention", "device")
STEPS_IN_ALL = 10**6
START_S = 60.0


@dataclass(frozen=True)
class DeviceSettings:
    """What the device is made of.

    Attributes:
        registry: address of the other model's versions.
        orders: pipe that a version is ordered by, a line each.
        broker: address of the broker that samples come from.
        trainings: settings of a training process each, by name.
        requests_per_s: predictions asked of the engine, at random (Poisson) times.
    """

    folder: str
    registry: str
    orders: str
    release_key: str
    broker: str
    trainings: dict[str, dict[str, Any]]
    requests_per_s: float


class Device:
    """Serves the CNN, trains it, and keeps up with another model's versions."""

    def __init__(self, settings: DeviceSettings, stack: ExitStack) -> None:
        self._settings = settings
        folder = Path(settings.folder)
        self._rng = np.random.default_rng(0)
        patcher = Patcher.from_bytes(
            (MODEL / "template.tflite").read_bytes(), (MODEL / "plan.json").read_bytes()
        )
        self._layout = patcher.plan.layout
        self._weights = self._rng.normal(0, 0.1, self._layout.size).astype(np.float32)
        version = Version(0, vector_digest(self._weights))
        engine = EngineMaker(patcher).engine(self._layout, self._weights, version)
        self._serving = Serving(engine)
        self._inputs = self._rng.random((64, *self._serving.input_shape), np.float32)
        self._samples = stack.enter_context(SampleDatabase(folder / "samples.db", StoreConfig()))
        for number in range(NUM_EXAMPLES):
            image = self._rng.random(self._serving.input_shape, np.float32)
            self._samples.add(f"image-{number}", image, np.int64(number % 10))
        self._workers = {
            name: self._worker(folder, name, training)
            for name, training in settings.trainings.items()
        }
        for worker in self._workers.values():
            stack.callback(worker.stop)
        server = serve(
            InferenceService(self._serving, self._samples, DeviceStatus),
            folder / "inference.sock",
            InferenceConfig(),
        )
        stack.callback(lambda: server.stop(0).wait())
        self._mqtt = self._listen(folder)
        stack.callback(self._mqtt.stop)
        self._other, self._registry = self._follow(folder)
        stack.callback(self._registry.stop)
        self._orders = os.open(settings.orders, os.O_WRONLY)
        stack.callback(os.close, self._orders)
        self._ordered = 0
        self._beside: list[threading.Thread] = []
        self._over = threading.Event()
        self._done: dict[str, Any] = {}
        self._problem = ""
        self._began = time.monotonic()
        self._accepted = 0.0

    def _listen(self, folder: Path) -> MqttPart:
        """Take samples in, answer and keep them, as a daemon does."""
        part = MqttPart(
            MqttConfig(
                broker=BrokerConfig(address=self._settings.broker),
                schema=SchemaConfig(format="packed", shape=self._serving.input_shape),
            ),
            *(TOPICS, folder / "outbox.db", self._serving, self._samples),
            WindowStream(lambda: None, self._serving, self._samples),
            look_now=lambda: None,
        )
        part.start()
        if not _wait_for(lambda: bool(part.snapshot()["connected"])):
            raise RuntimeError(part.problem)
        return part

    def _follow(self, folder: Path) -> tuple[Serving, RegistryClient]:
        """Keep up with the other model's versions, in this process, as a daemon does."""
        config = RegistryClientConfig(
            address=self._settings.registry,
            release_public_key=Path(self._settings.release_key),
            keep_versions=2,
        )
        store = ModelStore(folder / "models", load_release_key(config.release_public_key), 2)
        serving = Serving(None)
        rollout = Rollout(store, serving, ModelsConfig())
        rollout.open(crashed=False)
        client = RegistryClient(config, rollout)
        client.start()
        return serving, client

    def _worker(self, folder: Path, name: str, training: dict[str, Any]) -> ProcessWorker:
        worker = ProcessWorker(
            ProcessSettings(
                folder / "samples.db",
                TASK,
                training=TrainingProcessConfig(**training),
                steps_path=folder / f"{name}.steps",
            )
        )
        worker.describe()
        return worker

    def begin(self, *, training: str, version_each_s: float | None) -> dict[str, Any]:
        """Start what is to go on beside the predictions; returns once it does.

        Args:
            training: which process trains, until its deadline; empty for none.
            version_each_s: a version is installed so often; None is never.
        """
        self._over.clear()
        self._done = {}
        self._beside = []
        if training:
            steps = Path(self._settings.folder) / f"{training}.steps"
            steps.unlink(missing_ok=True)
            self._in_thread(lambda: self._train(training))
            if not _wait_for(steps.exists):
                raise RuntimeError(f"training {training!r} does not begin")
        if version_each_s is not None:
            self._in_thread(lambda: self._take_versions(version_each_s))
        self._began, self._accepted = time.monotonic(), self._count("samples_accepted_total")
        return {}

    def _count(self, name: str) -> float:
        return self._mqtt.snapshot()[name]

    def _in_thread(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:  # told by `end`
                self._problem = repr(error)

        thread = threading.Thread(target=run)
        thread.start()
        self._beside.append(thread)

    def _train(self, name: str) -> None:
        plan = DpPlan(1.0, BATCH_SIZE / NUM_EXAMPLES, STEPS_IN_ALL, 1.0, 1e-5, NUM_EXAMPLES)
        trained = self._workers[name].train(
            self._layout.digest, self._weights, Hyperparameters(), plan, round_id="contention"
        )
        self._done["steps_per_s"] = trained.num_steps / trained.seconds

    def _take_versions(self, each_s: float) -> None:
        """Have version after version published, the next not before the last one is served."""
        number, began = 0, time.monotonic()
        while not self._over.is_set():
            os.write(self._orders, b"\n")
            if not _wait_for(lambda: self._other_round() == self._ordered):
                raise RuntimeError(
                    f"version {self._ordered} is not served but {self._other_round()}: "
                    f"{self._registry.problem or self._registry.connected}"
                )
            self._ordered += 1
            number += 1
            self._over.wait(max(0.0, began + number * each_s - time.monotonic()))
        self._done["versions"] = number

    def _other_round(self) -> int:
        try:
            return self._other.version.round
        except ModelError:  # there is none yet
            return -1

    def engine(self, *, seconds: float) -> dict[str, Any]:
        """Return what predictions took, in ms, asked in this process at random times."""
        taken = []
        end = time.perf_counter() + seconds
        gaps = self._rng.exponential(1 / self._settings.requests_per_s, 100_000)
        for gap, number in zip(gaps, range(len(gaps)), strict=True):
            time.sleep(gap)
            before = time.perf_counter()
            self._serving.predict(self._inputs[number % len(self._inputs)])
            after = time.perf_counter()
            taken.append(after - before)
            if after > end:
                break
        return percentiles(taken)

    def taken(self) -> dict[str, Any]:
        """Return how many samples a second were accepted, answered and kept since `begin`."""
        accepted = self._count("samples_accepted_total") - self._accepted
        return {"messages_per_s": accepted / (time.monotonic() - self._began)}

    def end(self, *, published: int) -> dict[str, Any]:
        """Wait until what was begun is over; return what it came to.

        Args:
            published: samples that the source has ever sent; all are to be answered, once.
        """
        self._over.set()
        for thread in self._beside:
            thread.join()
        if not _wait_for(lambda: self._count("predictions_delivered_total") >= published):
            self._problem = f"not all of {published} samples are answered: {self._mqtt.snapshot()}"
        if self._problem:
            raise RuntimeError(self._problem)
        return self._done


def percentiles(seconds: list[float]) -> dict[str, Any]:
    """Return the median and the 99th percentile in ms, and how many there were."""
    values: npt.NDArray[np.float64] = np.array(seconds) * 1000
    return {
        "p50": float(np.percentile(values, 50)),
        "p99": float(np.percentile(values, 99)),
        "number": len(values),
    }


def _wait_for(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False where it does not in time."""
    give_up = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def main() -> None:
    """Do as standard input says until it ends."""
    settings = DeviceSettings(**json.loads(sys.stdin.readline()))
    with ExitStack() as stack:
        device = Device(settings, stack)
        be_responsive()  # as the daemon is
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            answer = getattr(device, command.pop("do"))(**command)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
