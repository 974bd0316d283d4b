"""The device's node: one thread that pulls messages, answers them and reconnects for ever.

It calls the same ``ClientApp`` object that Flower itself would call, so ``flwr run .`` and the
daemon cannot drift apart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from edge_client.node_identity import SessionFile
from edge_client.pending_message import PendingMessage
from edge_client.pulse import Pulse
from fedge.backoff import Backoff
from fedge.errors import FedgeError, TransportError
from fedge.flower_internals import ERROR_CODE_APP_FAILED, NodeConnection
from fedge.superlink_errors import Refused, RunNotRunning

FIRST_DELAY_S = 0.5
IDLE_SHARE = 0.05
LONGEST_POLL_S = 1.0
STEP_S = 600.0  # no exchange with the SuperLink takes longer, unless the loop hangs
MAX_PUSHES = 5

_log = logging.getLogger(__name__)


@dataclass
class _Unsent:
    """A reply on its way, kept through reconnections."""

    reply: Message
    seconds: float
    num_refused: int = 0


class NodeLoop:
    """Takes part in runs until it is stopped.

    Args:
        connect: makes a connection that is not open yet; told the id of a session that was
            never closed.
        app: answers messages.
        poll_interval_s: between pulls after a message; an idle node polls ever more rarely, up
            to once a second.
        reconnect_max_s: longest wait between two attempts to connect.
        session: remembers an open session.
        pending: remembers the message being answered.
    """

    def __init__(
        self,
        connect: Callable[[int | None], NodeConnection],
        app: ClientApp,
        *,
        poll_interval_s: float,
        reconnect_max_s: float,
        session: SessionFile,
        pending: PendingMessage,
    ) -> None:
        self._connect = connect
        self._app = app
        self._poll_interval_s = poll_interval_s
        self._backoff = Backoff(FIRST_DELAY_S, max(FIRST_DELAY_S, reconnect_max_s))
        self._session = session
        self._pending = pending
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)
        self.pulse = Pulse()
        self._unsent: _Unsent | None = None
        self._node_id: int | None = None
        self.connected = False
        self.problem = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End, saying goodbye to the SuperLink if it listens; give up waiting after a while."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.pulse.beat(STEP_S)
            try:
                self._live()
            except TransportError as error:
                self._report(str(error))
            except Exception as error:
                # The loop is the device's only way to take part: nothing may end it but `stop`.
                if not self._stop.is_set():
                    _log.exception("the node met a bug and connects again")
                self._report(f"{type(error).__name__} in the node; the log says more")
            self.connected = False
            delay_s = self._backoff.next_delay_s()
            self.pulse.beat(delay_s + STEP_S)
            self._stop.wait(delay_s)

    def _report(self, problem: str) -> None:
        if problem != self.problem and not self._stop.is_set():
            _log.warning("not connected: %s", problem)
        self.problem = problem

    def _live(self) -> None:
        """Open a session, serve it until it breaks or we are stopped, and close it."""
        connection = self._connect(self._session.read())
        try:
            node_id = connection.open()
            if node_id != self._node_id:
                self._unsent = None  # it names another node and would be refused
                _log.info("connected to the SuperLink as node %d", node_id)
            else:
                _log.info("connected again")
            self._node_id = node_id
            self._session.write(node_id)
            self._give_up_what_a_crash_cut_off(node_id)
            self._serve(connection, node_id)
        finally:
            if connection.close():
                self._session.clear()

    def _give_up_what_a_crash_cut_off(self, node_id: int) -> None:
        """Let the server know at once, so that its round does not wait for us till its deadline."""
        if self._unsent is not None:
            return
        message = self._pending.take(node_id)
        if message is not None:
            error = Error(ERROR_CODE_APP_FAILED, "the device was cut off in the middle of its work")
            self._unsent = _Unsent(Message(error, reply_to=message), 0.0)

    def _serve(self, connection: NodeConnection, node_id: int) -> None:
        busy_at = time.monotonic()
        while True:
            self.pulse.beat(STEP_S)
            self._push(connection)
            if self._stop.is_set():
                return
            message = self._pull(connection)
            self.connected, self.problem = True, ""
            self._backoff.reset()
            if message is None:
                idle_s = time.monotonic() - busy_at
                wait_s = max(self._poll_interval_s, min(IDLE_SHARE * idle_s, LONGEST_POLL_S))
                self._stop.wait(wait_s)
                continue
            began = time.monotonic()
            self._pending.note(message)
            self.pulse.beat(None)  # the worker has a deadline of its own
            reply = self._answer(message, node_id)
            busy_at = time.monotonic()
            self._unsent = _Unsent(reply, busy_at - began)

    def _pull(self, connection: NodeConnection) -> Message | None:
        try:
            return connection.pull()
        except RunNotRunning as error:
            _log.info("a message was dropped: %s", error)
            return None

    def _push(self, connection: NodeConnection) -> None:
        """Send the reply that waits, if any; drop it when nobody wants it."""
        unsent = self._unsent
        if unsent is None:
            return
        try:
            connection.push(unsent.reply, unsent.seconds)
        except RunNotRunning as error:
            _log.info("a reply was dropped: %s", error)
        except Refused as error:
            unsent.num_refused += 1
            if unsent.num_refused < MAX_PUSHES:
                raise
            _log.warning("a reply was dropped after %d attempts: %s", MAX_PUSHES, error)
        self._unsent = None
        self._pending.clear()

    def _answer(self, message: Message, node_id: int) -> Message:
        """Call the app; what it raises becomes one line, never a traceback or a sample."""
        context = Context(
            run_id=message.metadata.run_id,
            node_id=node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        try:
            return self._app(message, context)
        except FedgeError as error:
            text = f"{type(error).__name__}: {'; '.join(str(error).splitlines())}"
            _log.warning("a request failed: %s", text)
        except Exception as error:
            # Isolates one message from the daemon. The text of a foreign error may hold data,
            # so only its type leaves the device.
            _log.exception("a request failed")
            text = f"{type(error).__name__}; the device's log says more"
        return Message(Error(ERROR_CODE_APP_FAILED, text), reply_to=message)
