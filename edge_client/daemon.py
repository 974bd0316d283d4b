"""The device daemon: predictions at once, private training beside them, one process and a child.

This process never imports torch. What can fail without the others fails alone: without a server
the device predicts, with a damaged ledger it predicts and does not train.
"""

from __future__ import annotations

import json
import logging
import threading
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edge_client.client_app import make_client_app
from edge_client.held_weights import HeldWeights
from edge_client.inference import Serving
from edge_client.ledger import Account
from edge_client.ledger_db import SqliteLedger
from edge_client.model_store import ModelStore, load_bundled
from edge_client.node_identity import SessionFile, load_identity
from edge_client.opened_later import OpenedLater
from edge_client.operation import Operation
from edge_client.participant import Participant, TrainedRound
from edge_client.pending_message import PendingMessage
from edge_client.personal_model import PersonalModel, compose_from
from edge_client.process_figures import resident_bytes
from edge_client.process_worker import ProcessWorker
from edge_client.readings_service import ReadingsServer
from edge_client.registry_client import RegistryClient
from edge_client.replies import FileReplyStore
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import EdgeConfig
from edge_client.state_folder import StateFolder
from edge_client.supernode import NodeLoop
from edge_client.window_stream import WindowStream
from edge_client.worker_frames import ProcessSettings
from fedge.channels import check_socket_path
from fedge.cli import wait_for_stop
from fedge.durable import append_line
from fedge.errors import ConfigError, FedgeError, ModelError, PrivacyError
from fedge.flower_internals import NodeConnection
from fedge.service_manager import ServiceManager
from fedge.task import EdgeFiles
from fedge.windows import WindowSpec

SERVICE_GRACE_S = 0.5

_log = logging.getLogger(__name__)


class Daemon:
    """Everything that runs on one device."""

    def __init__(self, config: EdgeConfig, manager: ServiceManager | None = None) -> None:
        self._config = config
        self._operation = Operation(manager or ServiceManager(), config.metrics_address)
        self._num_rounds = 0
        self._folder = StateFolder(config.state_dir)
        self._worker = ProcessWorker(ProcessSettings.of(config))
        self._registry: RegistryClient | None = None
        self._node: NodeLoop | None = None
        self._participant: Participant | None = None
        self._ledger: SqliteLedger | None = None
        self._personal: PersonalModel | None = None
        self._stream: WindowStream | None = None
        self._problem = ""

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
            self._start_worker(stack, stop)
            try:
                self._start(stack, samples)
            except FedgeError:
                if not stop.is_set():  # else it is only the child that we ended ourselves
                    raise
            wait_for_stop(stop)
            self._operation.stopping()
            _log.info("stopping")

    def _start_worker(self, stack: ExitStack, stop: threading.Event) -> None:
        """Start the child; a stop ends it at once, so that nothing waits for it."""
        self._worker.start()
        stack.callback(self._worker.stop)

        def end_with_daemon() -> None:
            stop.wait()
            self._worker.stop()

        threading.Thread(target=end_with_daemon, name="stop-training", daemon=True).start()

    def _start(self, stack: ExitStack, samples: SampleDatabase) -> None:
        config = self._config
        key = load_release_key(config.registry.release_public_key)
        replies, num_threads = FileReplyStore(self._folder.replies), config.inference.num_threads
        keep_versions, compose = config.registry.keep_versions, compose_from(replies)
        store = ModelStore(self._folder.models, key, keep_versions, compose=compose)
        serving = self._make_serving(store)
        self._personal = PersonalModel(replies, store, serving, num_threads)
        server = serve(
            InferenceService(
                serving, samples, self.status, self._operation.metrics.latency.observe
            ),
            config.socket_path,
            config.inference,
        )
        stack.callback(lambda: server.stop(SERVICE_GRACE_S).wait())
        self._registry = RegistryClient(
            config.registry,
            store,
            serving,
            device=config.name or config.state_dir.name,
            num_threads=num_threads,
        )
        self._registry.start()
        stack.callback(self._registry.stop)
        self._stream = WindowStream(self._load_windows, serving, samples)
        readings = ReadingsServer(self._stream, self._folder.readings_socket)
        readings.start()
        stack.callback(readings.stop, SERVICE_GRACE_S)
        self._start_node(stack, replies)
        self._watch_over(stack, serving, samples)
        _log.info("ready on %s", config.socket_path)

    def _make_serving(self, store: ModelStore) -> Serving:
        """Serve what is stored, else the model as shipped, else wait for a first version."""
        num_threads = self._config.inference.num_threads
        try:
            return Serving(store.load_engine(num_threads))
        except ModelError as error:
            if store.versions():
                _log.warning("%s", error)
        description = self._worker.describe()
        if description.template:
            files = EdgeFiles(Path(description.template), Path(description.plan))
            return Serving(load_bundled(files, num_threads))
        _log.warning("task %s ships no model: waiting for a first version", description.name)
        return Serving(None)

    def _load_windows(self) -> WindowSpec | None:
        windows = self._worker.describe().windows
        return WindowSpec.from_json(windows) if windows else None

    def _start_node(self, stack: ExitStack, replies: FileReplyStore) -> None:
        """Take part in training, if a SuperLink is configured and the ledger is whole."""
        node = self._config.node
        if not node.superlink:
            return
        try:
            self._ledger = SqliteLedger(self._folder.ledger)
            stack.callback(self._ledger.close)
            identity = load_identity(self._folder.path)
        except (PrivacyError, ConfigError) as error:
            _log.error("%s", error)
            self._problem = str(error)
            return
        participant = Participant(
            self._worker,
            self._ledger,
            replies,
            self._config.privacy,
            held=HeldWeights(),
            journal=self._note_round,
        )
        self._participant = participant
        self._node = NodeLoop(
            lambda known: NodeConnection(
                node.superlink, identity, ca=node.tls.ca, known_node_id=known
            ),
            make_client_app(lambda _: participant),
            poll_interval_s=node.poll_interval_s,
            reconnect_max_s=node.reconnect_max_s,
            session=SessionFile(self._folder.path),
            pending=PendingMessage(self._folder.path),
        )
        self._node.start()
        stack.callback(self._node.stop)

    def _watch_over(self, stack: ExitStack, serving: Serving, samples: SampleDatabase) -> None:
        """Gather the parts' numbers and signs of life, and begin to check."""
        metrics, pulses = self._operation.metrics, self._operation.pulses
        metrics.add("samples", lambda: _sample_figures(samples))
        metrics.add("daemon-parts", self._figures, prefix="")
        loops = {"node": self._node, "registry": self._registry}
        pulses.update({name: loop.pulse for name, loop in loops.items() if loop is not None})
        self._operation.start(stack, serving, self._config.socket_path, self._describe)

    def _figures(self) -> dict[str, float]:
        figures = {
            "registry_connected": float(self._registry is not None and self._registry.connected),
            "node_connected": float(self._node is not None and self._node.connected),
            "training_rounds_total": float(self._num_rounds),
        }
        account, resident = self._account(), resident_bytes(self._worker.pid or 0)
        if account is not None:
            figures["privacy_epsilon_spent"] = account.epsilon
            figures["privacy_epsilon_left"] = self._config.privacy.epsilon - account.epsilon
        if resident is not None:
            figures["training_resident_memory_bytes"] = float(resident)
        return figures

    def _describe(self) -> str:
        """Return one line for the service manager."""
        status = self.status()
        served = f"{status.figures.get('predictions_total', 0):.0f} predictions"
        version = status.figures.get("model_round")
        model = "no model yet" if version is None else f"serving round {version:.0f}"
        return f"{model}, {served}; {status.problem or 'no problem'}"

    def status(self) -> DeviceStatus:
        """Return how this device is."""
        problems = [self._problem, self._operation.problem]
        problems += [part.problem for part in (self._node, self._participant) if part is not None]
        problems += [] if self._stream is None else [self._stream.problem]
        if self._registry is not None:
            problems.append(self._registry.problem)
        account = self._account()
        return DeviceStatus(
            connected=self._node is not None and self._node.connected,
            problem="; ".join(problem for problem in problems if problem),
            epsilon=None if account is None else account.epsilon,
            delta=None if account is None else account.delta,
            healthy=not self._operation.health,
            figures=self._operation.metrics.snapshot(),
        )

    def _account(self) -> Account | None:
        """Return what was spent; None without DP, or while the ledger cannot be read."""
        privacy = self._config.privacy
        if not privacy.enabled or self._ledger is None:
            return None
        try:
            return self._ledger.account() or Account(0.0, privacy.delta)
        except PrivacyError:
            return None

    def _note_round(self, trained: TrainedRound) -> None:
        self._num_rounds += 1
        try:
            append_line(self._folder.rounds, json.dumps(asdict(trained)))
        except OSError as error:
            _log.warning("cannot note a round in %s: %s", self._folder.rounds, error.strerror)
        if self._personal is not None:
            self._personal.refresh(trained.run)


def load_release_key(path: Path | None) -> Ed25519PublicKey | None:
    """Return the pinned release key, None when none is configured.

    Raises:
        ConfigError: the file is not an Ed25519 public key in PEM.
    """
    if path is None:
        return None
    name = "registry.release_public_key"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key=name) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key in PEM", key=name) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 key: take the server's .pub file", key=name)
    return key


def _sample_figures(samples: SampleDatabase) -> dict[str, float]:
    figures = samples.figures()
    return {
        "labelled": figures.labelled,
        "unlabelled": figures.unlabelled,
        "bytes": figures.size_bytes,
        "waiting_labels": figures.waiting_labels,
        "duplicates_total": figures.duplicates,
    }
