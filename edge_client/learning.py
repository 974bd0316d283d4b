"""A device's part in training: the training process, the ledger, and the node that brings work.

Flower is imported here: a device of the `infer` profile has none of this. Torch is not.
"""

from __future__ import annotations

import json
import logging
import threading
from contextlib import ExitStack
from dataclasses import asdict

from edge_client.client_app import make_client_app
from edge_client.held_weights import HeldWeights
from edge_client.inference import Serving
from edge_client.ledger import Account
from edge_client.ledger_db import SqliteLedger
from edge_client.model_store import Compose, ModelStore
from edge_client.node_identity import SessionFile, load_identity
from edge_client.participant import Participant, TrainedRound
from edge_client.pending_message import PendingMessage
from edge_client.personal_model import PersonalModel, compose_from
from edge_client.process_figures import resident_bytes
from edge_client.process_worker import ProcessWorker
from edge_client.pulse import Pulse
from edge_client.replies import FileReplyStore
from edge_client.settings import EdgeConfig
from edge_client.state_folder import StateFolder
from edge_client.supernode import NodeLoop
from edge_client.task_description import Description
from edge_client.worker_frames import ProcessSettings
from fedge.durable import append_line
from fedge.errors import ConfigError, PrivacyError, StoreError
from fedge.flower_internals import NodeConnection

_log = logging.getLogger(__name__)


class Learning:
    """What trains beside the predictions; what fails here leaves them alone."""

    def __init__(self, config: EdgeConfig, folder: StateFolder) -> None:
        self._config = config
        self._folder = folder
        self._worker = ProcessWorker(ProcessSettings.of(config))
        self._replies: FileReplyStore | None = None
        self._personal: PersonalModel | None = None
        self._ledger: SqliteLedger | None = None
        self._participant: Participant | None = None
        self._node: NodeLoop | None = None
        self._problem = ""
        self._num_rounds = 0

    def start_process(self, stack: ExitStack, stop: threading.Event) -> None:
        """Start the child; a stop ends it at once, so that nothing waits for it."""
        if self._config.node.superlink:
            self._worker.start()
        stack.callback(self._worker.stop)

        def end_with_daemon() -> None:
            stop.wait()
            self._worker.stop()

        threading.Thread(target=end_with_daemon, name="stop-training", daemon=True).start()

    def describe(self) -> Description:
        """Return what the child says about its task; call it once.

        Raises:
            FedgeError: the task cannot be loaded.
        """
        description = self._worker.describe()
        if not self._config.node.superlink:
            self._worker.stop()  # it has nothing else to do
        return description

    def open_replies(self) -> Compose | None:
        """Open what remembers rounds; return what puts the personal layers in it into a model."""
        if not self._config.node.superlink and not self._folder.replies.exists():
            return None
        try:
            self._replies = FileReplyStore(self._folder.replies)
        except StoreError as error:
            _log.error("%s; this device predicts and does not train", error)
            self._problem = str(error)
            return None
        return compose_from(self._replies)

    def start(self, stack: ExitStack, store: ModelStore, serving: Serving) -> None:
        """Take part in training, if a SuperLink is configured and the ledger is whole."""
        if self._replies is None:
            return
        num_threads = self._config.inference.num_threads
        self._personal = PersonalModel(self._replies, store, serving, num_threads)
        if not self._config.node.superlink:
            return
        try:
            self._ledger = SqliteLedger(self._folder.ledger)
            stack.callback(self._ledger.close)
            self._node = self._make_node(self._ledger, self._replies)
        except (PrivacyError, ConfigError) as error:
            _log.error("%s", error)
            self._problem = str(error)
            return
        self._node.start()
        stack.callback(self._node.stop)

    def _make_node(self, ledger: SqliteLedger, replies: FileReplyStore) -> NodeLoop:
        node, path = self._config.node, self._folder.path
        identity = load_identity(path)
        participant = Participant(
            self._worker,
            ledger,
            replies,
            self._config.privacy,
            held=HeldWeights(),
            journal=self.note_round,
        )
        self._participant = participant
        return NodeLoop(
            lambda known: NodeConnection(
                node.superlink, identity, ca=node.tls.ca, known_node_id=known
            ),
            make_client_app(lambda _: participant),
            poll_interval_s=node.poll_interval_s,
            reconnect_max_s=node.reconnect_max_s,
            session=SessionFile(path),
            pending=PendingMessage(path),
        )

    @property
    def connected(self) -> bool:
        """Whether the SuperLink is reached."""
        return self._node is not None and self._node.connected

    @property
    def pulse(self) -> Pulse | None:
        """Signs of life of the node's loop, None where there is none."""
        return None if self._node is None else self._node.pulse

    @property
    def problem(self) -> str:
        """What keeps this device from training, or nothing."""
        parts = (self._worker, self._node, self._participant)
        problems = [self._problem, *(part.problem for part in parts if part is not None)]
        return "; ".join(problem for problem in problems if problem)

    @property
    def account(self) -> Account | None:
        """What was spent; None without DP, or while the ledger cannot be read."""
        privacy = self._config.privacy
        if not privacy.enabled or self._ledger is None:
            return None
        try:
            return self._ledger.account() or Account(0.0, privacy.delta)
        except PrivacyError:
            return None

    def snapshot(self) -> dict[str, float]:
        """Return the numbers of this part, for the metrics page."""
        figures = {
            "node_connected": float(self.connected),
            "training_rounds_total": float(self._num_rounds),
            "training_paused": float(bool(self._worker.problem)),
        }
        account, resident = self.account, resident_bytes(self._worker.pid or 0)
        if account is not None:
            figures["privacy_epsilon_spent"] = account.epsilon
            figures["privacy_epsilon_left"] = self._config.privacy.epsilon - account.epsilon
        if resident is not None:
            figures["training_resident_memory_bytes"] = float(resident)
        return figures

    def note_round(self, trained: TrainedRound) -> None:
        """Write a line about a round, and predict with what it made of the personal layers."""
        self._num_rounds += 1
        try:
            append_line(self._folder.rounds, json.dumps(asdict(trained)))
        except OSError as error:
            _log.warning("cannot note a round in %s: %s", self._folder.rounds, error.strerror)
        if self._personal is not None:
            self._personal.refresh(trained.run)
