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

from edge_client.client_app import make_client_app
from edge_client.crash_guard import CrashGuard
from edge_client.crash_mark import CrashMark
from edge_client.device_id import load_device_id
from edge_client.held_weights import HeldWeights
from edge_client.inference import Engine, Serving
from edge_client.ledger import Account
from edge_client.ledger_db import SqliteLedger
from edge_client.local_voice import LocalVoice
from edge_client.model_store import ModelStore, load_bundled
from edge_client.node_identity import SessionFile, load_identity
from edge_client.participant import Participant, TrainedRound
from edge_client.pending_message import PendingMessage
from edge_client.personal_model import PersonalModel, compose_from
from edge_client.process_worker import ProcessWorker
from edge_client.registry_client import RegistryClient
from edge_client.release_public_key import load_release_key as load_release_key
from edge_client.replies import FileReplyStore
from edge_client.rollout import Rollout
from edge_client.sample_store import SampleDatabase
from edge_client.service import DeviceStatus, InferenceService, serve
from edge_client.settings import EdgeConfig
from edge_client.state_folder import StateFolder
from edge_client.supernode import NodeLoop
from edge_client.worker_frames import ProcessSettings
from fedge.durable import append_line
from fedge.errors import FedgeError, PrivacyError
from fedge.flower_internals import NodeConnection
from fedge.task import EdgeFiles

SERVICE_GRACE_S = 0.5

_log = logging.getLogger(__name__)


class Daemon:
    """Everything that runs on one device."""

    def __init__(self, config: EdgeConfig) -> None:
        self._config = config
        self._folder = StateFolder(config.state_dir)
        self._worker = ProcessWorker(ProcessSettings.of(config))
        self._registry: RegistryClient | None = None
        self._rollout: Rollout | None = None
        self._node: NodeLoop | None = None
        self._participant: Participant | None = None
        self._ledger: SqliteLedger | None = None
        self._personal: PersonalModel | None = None
        self._problem = ""

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
            self._start_worker(stack, stop)
            try:
                self._start(stack, samples)
            except FedgeError:
                if not stop.is_set():  # else it is only the child that we ended ourselves
                    raise
            stop.wait()
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
        serving = Serving()
        rollout = self._open_models(stack, store, serving, samples)
        self._personal = PersonalModel(replies, store, serving, num_threads)
        server = serve(
            InferenceService(serving, samples, self.status), config.socket_path, config.inference
        )
        stack.callback(lambda: server.stop(SERVICE_GRACE_S).wait())
        self._registry = RegistryClient(
            config.registry,
            rollout,
            device=config.name or config.state_dir.name,
            node=load_device_id(self._folder.path),
        )
        self._registry.start()
        stack.callback(self._registry.stop)
        self._start_node(stack, replies)
        _log.info("ready on %s", config.socket_path)

    def _open_models(
        self, stack: ExitStack, store: ModelStore, serving: Serving, samples: SampleDatabase
    ) -> Rollout:
        """Serve what is stored, else the model as shipped, else wait for a first version."""
        models = self._config.models
        rollout = Rollout(
            store,
            serving,
            models,
            guard=CrashGuard(self._folder.models, models.max_crashes, models.max_kills),
            voice=LocalVoice(samples, models),
            fallback=self._load_shipped,
            private=self._config.privacy.enabled,
            num_threads=self._config.inference.num_threads,
        )
        mark = CrashMark(self._folder.models)
        stack.callback(mark.close)
        rollout.open(crashed=mark.take())
        rollout.start()
        stack.callback(rollout.stop)
        self._rollout = rollout
        return rollout

    def _load_shipped(self) -> Engine | None:
        description = self._worker.describe()
        if not description.template:
            _log.warning("task %s ships no model: waiting for a first version", description.name)
            return None
        files = EdgeFiles(Path(description.template), Path(description.plan))
        return load_bundled(files, self._config.inference.num_threads)

    def _start_node(self, stack: ExitStack, replies: FileReplyStore) -> None:
        """Take part in training, if a SuperLink is configured and the ledger is whole."""
        node = self._config.node
        if not node.superlink:
            return
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
        problems += [part.problem for part in (self._registry, self._rollout) if part is not None]
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
