"""The device daemon: predictions at once, private training beside them, one process and a child.

This process never imports torch. What can fail without the others fails alone: without a server
the device predicts, with a damaged ledger it predicts and does not train.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, cast

from edge_client.batching import preparation
from edge_client.crash_guard import CrashGuard
from edge_client.crash_mark import CrashMark
from edge_client.device_id import load_device_id
from edge_client.inference import Engine, Serving
from edge_client.local_voice import LocalVoice
from edge_client.model_store import ModelStore, load_bundled
from edge_client.opened_later import OpenedLater
from edge_client.operation import Operation
from edge_client.profile import (
    describe_without_torch,
    missing_for_training,
    named_files,
    training_problem,
)
from edge_client.readings_service import ReadingsServer
from edge_client.registry_client import RegistryClient
from edge_client.release_public_key import load_release_key
from edge_client.responsive import be_responsive
from edge_client.rollout import Rollout
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve, serve_address
from edge_client.settings import EdgeConfig
from edge_client.state_folder import StateFolder
from edge_client.task_description import Description
from edge_client.window_stream import WindowStream
from fedge.channels import check_socket_path
from fedge.cli import wait_for_stop
from fedge.errors import FedgeError
from fedge.service_manager import ServiceManager
from fedge.windows import WindowSpec

if TYPE_CHECKING:
    from edge_client.learning import Learning
    from edge_client.mqtt.part import MqttPart

SERVICE_GRACE_S = 0.5

_log = logging.getLogger(__name__)


class Daemon:
    """Everything that runs on one device."""

    def __init__(self, config: EdgeConfig, manager: ServiceManager | None = None) -> None:
        self._config = config
        self._operation = Operation(manager or ServiceManager(), config.metrics_address)
        self._folder = StateFolder(config.state_dir)
        self._learning = None if missing_for_training() else _make_learning(config, self._folder)
        self._serving = Serving(prepare=preparation(config.inference))
        self._registry: RegistryClient | None = None
        self._rollout: Rollout | None = None
        self._stream: WindowStream | None = None
        self._mqtt: MqttPart | None = None
        self._not_started = "mqtt: not started yet" if config.mqtt.broker.address else ""

    def run(self, stop: threading.Event) -> None:
        """Serve until the event is set; then end everything, in about a second.

        Raises:
            FedgeError: the device cannot serve as it is configured.
        """
        check_socket_path(self._config.socket_path, "inference.socket")
        with ExitStack() as stack:
            stack.enter_context(self._folder)
            path, store = self._config.samples_path, self._config.store
            opened = stack.enter_context(OpenedLater(lambda: SampleDatabase(path, store)))
            samples = cast("SampleDatabase", opened)
            if self._learning is not None:
                self._learning.start_process(stack, stop)
            try:
                self._start(stack, samples)
            except FedgeError:
                if not stop.is_set():  # else it is only the child that we ended ourselves
                    raise
            wait_for_stop(stop)
            self._operation.stopping()
            _log.info("stopping")

    def _start(self, stack: ExitStack, samples: SampleDatabase) -> None:
        config = self._config
        store = ModelStore(
            self._folder.models,
            load_release_key(config.registry.release_public_key),
            config.registry.keep_versions,
            compose=None if self._learning is None else self._learning.open_replies(),
        )
        rollout = self._rollout = self._open_models(stack, store, samples)
        self._serve(stack, samples)
        self._registry = RegistryClient(
            config.registry,
            rollout,
            device=config.name or config.state_dir.name,
            node=load_device_id(self._folder.path),
        )
        self._registry.start()
        stack.callback(self._registry.stop)
        stream = self._take_readings(stack, samples)
        self._start_mqtt(stack, samples, stream, self._registry.look_now)
        if self._learning is not None:
            self._learning.start(stack, store, self._serving)
        self._watch_over(stack, samples)
        be_responsive()
        _log.info("ready on %s", config.socket_path)

    def _open_models(self, stack: ExitStack, store: ModelStore, samples: SampleDatabase) -> Rollout:
        """Serve what is stored, else the model as shipped, else wait for a first version."""
        models = self._config.models
        rollout = Rollout(
            store,
            self._serving,
            models,
            guard=CrashGuard(self._folder.models, models.max_crashes, models.max_kills),
            voice=LocalVoice(samples, models),
            fallback=self._load_shipped,
            private=self._config.privacy.enabled,
            num_threads=self._config.inference.num_threads,
        )
        mark = CrashMark(self._folder.path)
        stack.callback(mark.close)
        rollout.open(crashed=mark.take())
        rollout.start()
        stack.callback(rollout.stop)
        return rollout

    def _load_shipped(self) -> Engine | None:
        files = named_files(self._config)
        if files is None and self._description is not None:
            files = self._description.files
        if files is None:
            _log.warning("%s ships no model: waiting for a first version", self._config.task.name)
            return None
        return load_bundled(files, self._config.inference.num_threads)

    @cached_property
    def _description(self) -> Description | None:
        """The task, as the child says that runs its code, where there is torch to run it with."""
        if self._learning is None:
            return describe_without_torch(self._config)
        return self._learning.describe()

    def _serve(self, stack: ExitStack, samples: SampleDatabase) -> None:
        """Serve on the socket and, where it is configured, on an address."""
        config = self._config.inference
        service = InferenceService(
            self._serving,
            samples,
            self.status,
            self._operation.metrics.latency.observe,
            max_rows=config.max_rows,
        )
        servers = [serve(service, self._config.socket_path, config)]
        stack.callback(lambda: [each.wait() for each in [s.stop(SERVICE_GRACE_S) for s in servers]])
        if config.address:
            servers.append(serve_address(service, config)[0])

    def _take_readings(self, stack: ExitStack, samples: SampleDatabase) -> WindowStream:
        """Cut a sensor's readings into windows, if the task has any."""

        def load() -> WindowSpec | None:
            return None if self._description is None else self._description.window_spec

        stream = self._stream = WindowStream(load, self._serving, samples)
        readings = ReadingsServer(stream, self._folder.readings_socket)
        readings.start()
        stack.callback(readings.stop, SERVICE_GRACE_S)
        return stream

    def _start_mqtt(
        self,
        stack: ExitStack,
        samples: SampleDatabase,
        stream: WindowStream,
        look_now: Callable[[], None],
    ) -> None:
        """Take samples and readings, and send predictions, over MQTT, if a broker is configured."""
        config = self._config.mqtt
        if not config.broker.address:
            return
        from edge_client.mqtt.part import MqttPart  # a device without MQTT needs no paho

        topics, outbox = self._config.mqtt_topics, self._folder.outbox
        self._mqtt = MqttPart(config, topics, outbox, self._serving, samples, stream, look_now)
        self._mqtt.start()
        stack.callback(self._mqtt.stop)

    def _watch_over(self, stack: ExitStack, samples: SampleDatabase) -> None:
        """Gather the parts' numbers and signs of life, and begin to check."""
        metrics, pulses = self._operation.metrics, self._operation.pulses
        if self._mqtt is not None:
            metrics.add("mqtt", self._mqtt.snapshot)
        metrics.add("samples", lambda: samples.figures().snapshot())
        metrics.add("registry", self._registry_figures)
        if self._learning is not None:
            metrics.add("learning", self._learning.snapshot, prefix="")
        loops = {"node": self._learning, "registry": self._registry}
        found = {name: loop.pulse for name, loop in loops.items() if loop is not None}
        pulses.update({name: pulse for name, pulse in found.items() if pulse is not None})
        self._operation.start(stack, self._serving, self._config.socket_path, self._describe)

    def _registry_figures(self) -> dict[str, float]:
        return {"connected": float(self._registry is not None and self._registry.connected)}

    def _describe(self) -> str:
        """Return one line for the service manager."""
        status = self.status()
        served = f"{status.figures.get('predictions_total', 0):.0f} predictions"
        version = status.figures.get("model_round")
        model = "no model yet" if version is None else f"serving round {version:.0f}"
        return f"{model}, {served}; {status.problem or 'no problem'}"

    def status(self) -> DeviceStatus:
        """Return how this device is."""
        parts = (self._operation, self._learning, self._stream, self._registry, self._rollout)
        mqtt_problem = self._not_started if self._mqtt is None else self._mqtt.problem
        problems = [training_problem(self._config), mqtt_problem]
        problems += [part.problem for part in parts if part is not None]
        account = None if self._learning is None else self._learning.account
        return DeviceStatus(
            connected=self._learning is not None and self._learning.connected,
            problem="; ".join(problem for problem in problems if problem),
            epsilon=None if account is None else account.epsilon,
            delta=None if account is None else account.delta,
            healthy=not self._operation.health,
            figures=self._operation.metrics.snapshot(),
        )


def _make_learning(config: EdgeConfig, folder: StateFolder) -> Learning:
    # The `infer` profile has not what this imports.
    from edge_client.learning import Learning

    return Learning(config, folder)
