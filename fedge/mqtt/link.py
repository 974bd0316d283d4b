"""A link to a broker that is kept up for as long as it is wanted, whatever happens to the broker.

One thread connects, serves and, however that ends, waits and connects again with a new client:
nothing of a connection that died is used by the next one.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time

from fedge.backoff import Backoff
from fedge.errors import ConfigError, FedgeError
from fedge.mqtt.connection import Connection, LinkOptions, Listener
from fedge.mqtt.settings import BrokerConfig

FIRST_DELAY_S = 0.5
STABLE_S = 10.0
MANY_SHORT = 3
CLOSE_S = 1.0

log = logging.getLogger(__name__)


class Link:
    """Keeps a connection to one broker.

    Args:
        config: the broker.
        options: what the link is for.
        listener: told what happens.
        backoff: delays between attempts.
    """

    def __init__(
        self,
        config: BrokerConfig,
        options: LinkOptions,
        listener: Listener,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self._config = config
        self._options = options
        self._listener = listener
        first_s = min(FIRST_DELAY_S, config.reconnect_max_s)
        self._backoff = backoff or Backoff(first_s, config.reconnect_max_s)
        self._connection: Connection | None = None
        self._closing = threading.Lock()
        self._stopping = threading.Event()
        self._problem = f"broker {config.address}: not connected yet"
        self._told: list[str] = []
        self._num_connects = 0
        self._num_lost_sessions = 0
        self._had_session = False
        self._num_short = 0
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether messages can pass now."""
        connection = self._connection
        return connection is not None and connection.is_up

    @property
    def problem(self) -> str:
        """What is wrong with the broker or the way to it; or empty."""
        connection = self._connection
        if connection is None or not connection.is_up:
            return self._problem
        complaints = connection.complaints
        return f"broker {self._config.address}: {'; '.join(complaints)}" if complaints else ""

    def snapshot(self) -> dict[str, float]:
        """Return what is counted."""
        return {
            "connected": float(self.connected),
            "connects_total": float(self._num_connects),
            "sessions_lost_total": float(self._num_lost_sessions),
        }

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self, timeout_s: float = CLOSE_S) -> None:
        """Say goodbye to the broker and wait for the thread to end."""
        with self._closing:
            self._stopping.set()
            if self._connection is not None:
                self._connection.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            with self._closing:
                if self._stopping.is_set():
                    return
                self._connection = connection = Connection(
                    self._config, self._options, self._listener, self._note_up
                )
            try:
                reason = connection.serve()
            except Exception as error:
                reason = self._describe(error)
            stable = connection.is_up and time.monotonic() - began > STABLE_S
            self._num_short = self._num_short + 1 if connection.is_up and not stable else 0
            self._report(reason + self._suspicion())
            self._connection = None
            self._listener.on_down()
            if stable:
                self._backoff.reset()
            self._stopping.wait(self._backoff.next_delay_s())

    def _note_up(self, connection: Connection) -> None:
        self._num_connects += 1
        self._problem = ""
        granted = connection.granted
        if granted is not None:
            if self._had_session and not granted.session_present:
                self._num_lost_sessions += 1
                log.warning(
                    "broker %s has forgotten our session: what it had queued for us is lost",
                    self._config.address,
                )
            self._had_session = True
        log.info("connected to broker %s", self._config.address)
        complaints = connection.complaints
        if complaints != self._told:
            self._told = complaints
            for complaint in complaints:
                log.warning("broker %s: %s", self._config.address, complaint)

    def _suspicion(self) -> str:
        """Return what is likely where a broker takes us in and drops us, again and again."""
        if self._num_short < MANY_SHORT:
            return ""
        return (
            f", {self._num_short} times in a row soon after connecting: if the broker is well, "
            f"another client connects as {self._options.client_id!r}; give each its own client_id"
        )

    def _report(self, reason: str) -> None:
        if self._stopping.is_set():
            return
        problem = f"broker {self._config.address}: {reason}; trying again"
        if problem != self._problem:
            log.warning("%s", problem)
        self._problem = problem

    def _describe(self, error: Exception) -> str:
        match error:
            case socket.gaierror():
                return f"its name cannot be resolved ({error.strerror}): check DNS and the address"
            case ssl.SSLCertVerificationError():
                return f"its certificate is not accepted ({error.verify_message}): check tls.ca"
            case ssl.SSLError():
                return f"TLS failed ({error.reason or error}): check its port and the tls section"
            case TimeoutError():
                return "it does not answer: check that it runs and the network"
            case ConnectionRefusedError():
                return "it refuses connections: check that it runs and its port"
            case ConfigError() | FedgeError():
                return str(error)
            case OSError():
                return f"no connection ({error.strerror or error})"
        log.exception("the link to broker %s failed", self._config.address)
        return f"the link failed: {error!r}"
