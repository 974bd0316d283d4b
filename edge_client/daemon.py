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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edge_client.batching import preparation
from edge_client.inference import Serving
from edge_client.model_store import Compose, ModelStore, load_bundled
from edge_client.profile import (
    describe_without_torch,
    missing_for_training,
    named_files,
    training_problem,
)
from edge_client.readings_service import ReadingsServer
from edge_client.registry_client import RegistryClient
from edge_client.responsive import be_responsive
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve, serve_address
from edge_client.settings import EdgeConfig
from edge_client.state_folder import StateFolder
from edge_client.task_description import Description
from edge_client.window_stream import WindowStream
from fedge.durable import append_line
from fedge.errors import ConfigError, FedgeError, ModelError, PrivacyError
from fedge.windows import WindowSpec

# What takes part in training is imported where it is used: the `infer` profile has neither torch
# nor Flower.
if TYPE_CHECKING:
    from edge_client.ledger import Account
    from edge_client.ledger_db import SqliteLedger
    from edge_client.participant import Participant, TrainedRound
    from edge_client.personal_model import PersonalModel
    from edge_client.process_worker import ProcessWorker
    from edge_client.replies import FileReplyStore
    from edge_client.supernode import NodeLoop

SERVICE_GRACE_S = 0.5

_log = logging.getLogger(__name__)


class Daemon:
    """Everything that runs on one device."""

    def __init__(self, config: EdgeConfig) -> None:
        self._config = config
        self._folder = StateFolder(config.state_dir)
        self._worker = None if missing_for_training() else make_worker(config)
        self._registry: RegistryClient | None = None
        self._node: NodeLoop | None = None
        self._participant: Participant | None = None
        self._ledger: SqliteLedger | None = None
        self._personal: PersonalModel | None = None
        self._stream: WindowStream | None = None
        self._problem = training_problem(config)

    def run(self, stop: threading.Event) -> None:
        """Serve until the event is set; then end everything, in about a second.

        Raises:
            FedgeError: the device cannot serve as it is configured.
        """
        with ExitStack() as stack:
            stack.enter_context(self._folder)
            samples = stack.enter_context(
                SampleDatabase(self._config.samples_path, self._config.store)
            )
            if self._worker is not None:
                self._start_worker(self._worker, stack, stop)
            try:
                self._start(stack, samples)
            except FedgeError:
                if not stop.is_set():  # else it is only the child that we ended ourselves
                    raise
            stop.wait()
            _log.info("stopping")

    def _start_worker(self, worker: ProcessWorker, stack: ExitStack, stop: threading.Event) -> None:
        """Start the child; a stop ends it at once, so that nothing waits for it."""
        if self._config.node.superlink:
            worker.start()
        stack.callback(worker.stop)

        def end_with_daemon() -> None:
            stop.wait()
            worker.stop()

        threading.Thread(target=end_with_daemon, name="stop-training", daemon=True).start()

    def _start(self, stack: ExitStack, samples: SampleDatabase) -> None:
        config = self._config
        key = load_release_key(config.registry.release_public_key)
        replies, compose = self._open_replies()
        num_threads, keep_versions = config.inference.num_threads, config.registry.keep_versions
        store = ModelStore(self._folder.models, key, keep_versions, compose=compose)
        serving = self._make_serving(store)
        service = InferenceService(
            serving, samples, self.status, max_rows=config.inference.max_rows
        )
        self._serve(stack, service)
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
        if replies is not None:
            from edge_client.personal_model import PersonalModel

            self._personal = PersonalModel(replies, store, serving, num_threads)
            self._start_node(stack, replies)
        be_responsive()
        _log.info("ready on %s", config.socket_path)

    def _serve(self, stack: ExitStack, service: InferenceService) -> None:
        """Serve on the socket and, where it is configured, on an address."""
        config = self._config
        servers = [serve(service, config.socket_path, config.inference)]
        stack.callback(lambda: [each.wait() for each in [s.stop(SERVICE_GRACE_S) for s in servers]])
        if config.inference.address:
            servers.append(serve_address(service, config.inference)[0])

    def _open_replies(self) -> tuple[FileReplyStore | None, Compose | None]:
        """Return what remembers rounds, and what puts the personal layers in it into a model."""
        if missing_for_training():
            return None, None
        if not self._config.node.superlink and not self._folder.replies.exists():
            return None, None
        from edge_client.personal_model import compose_from
        from edge_client.replies import FileReplyStore

        replies = FileReplyStore(self._folder.replies)
        return replies, compose_from(replies)

    def _make_serving(self, store: ModelStore) -> Serving:
        """Serve what is stored, else the model as shipped, else wait for a first version."""
        inference = self._config.inference
        prepare = preparation(inference)
        try:
            return Serving(store.load_engine(inference.num_threads), prepare=prepare)
        except ModelError as error:
            if store.versions():
                _log.warning("%s", error)
        files = named_files(self._config)
        if files is None and self._description is not None:
            files = self._description.files
        if files is not None:
            return Serving(load_bundled(files, inference.num_threads), prepare=prepare)
        _log.warning("%s ships no model: waiting for a first version", self._config.task.name)
        return Serving(None, prepare=prepare)

    def _load_windows(self) -> WindowSpec | None:
        return None if self._description is None else self._description.window_spec

    @cached_property
    def _description(self) -> Description | None:
        """The task, as the child says that runs its code, where there is torch to run it with."""
        if self._worker is None:
            return describe_without_torch(self._config)
        description = self._worker.describe()
        if not self._config.node.superlink:
            self._worker.stop()  # it has nothing else to do
        return description

    def _start_node(self, stack: ExitStack, replies: FileReplyStore) -> None:
        """Take part in training, if a SuperLink is configured and the ledger is whole."""
        node = self._config.node
        if not node.superlink or self._worker is None:
            return
        from edge_client.client_app import make_client_app
        from edge_client.held_weights import HeldWeights
        from edge_client.ledger_db import SqliteLedger
        from edge_client.node_identity import SessionFile, load_identity
        from edge_client.participant import Participant
        from edge_client.pending_message import PendingMessage
        from edge_client.supernode import NodeLoop
        from fedge.flower_internals import NodeConnection

        try:
            self._ledger = SqliteLedger(self._folder.ledger)
        except PrivacyError as error:
            _log.error("%s", error)
            self._problem = str(error)
            return
        stack.callback(self._ledger.close)
        participant = Participant(
            self._worker,
            self._ledger,
            replies,
            self._config.privacy,
            held=HeldWeights(),
            journal=self._note_round,
        )
        self._participant = participant
        identity = load_identity(self._folder.path)
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

    def status(self) -> DeviceStatus:
        """Return how this device is."""
        problems = [self._problem]
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
        )

    def _account(self) -> Account | None:
        """Return what was spent; None without DP, or while the ledger cannot be read."""
        privacy = self._config.privacy
        if not privacy.enabled or self._ledger is None:
            return None
        from edge_client.ledger import Account

        try:
            return self._ledger.account() or Account(0.0, privacy.delta)
        except PrivacyError:
            return None

    def _note_round(self, trained: TrainedRound) -> None:
        try:
            append_line(self._folder.rounds, json.dumps(asdict(trained)))
        except OSError as error:
            _log.warning("cannot note a round in %s: %s", self._folder.rounds, error.strerror)
        if self._personal is not None:
            self._personal.refresh(trained.run)


def make_worker(config: EdgeConfig) -> ProcessWorker:
    """Return the daemon's end of a training process that is not started yet."""
    from edge_client.process_worker import ProcessWorker
    from edge_client.worker_frames import ProcessSettings

    return ProcessWorker(ProcessSettings.of(config))


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
