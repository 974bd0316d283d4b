"""A heartbeat that survives what Flower's own does not."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import httpx

from fedge.errors import TransportError
from fedge.superlink_errors import Refused

WAIT_S = 20.0
RETRY_S = 4.0


class Heartbeat:
    """Tells the SuperLink that this node lives, through outages and HTTP errors alike.

    Attributes:
        failure: why the session is over (the SuperLink forgot the node), else None.
    """

    def __init__(self, send: Callable[[], None]) -> None:
        self.failure: str | None = None
        self._send = send
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, without waiting for a heartbeat under way."""
        self._stop.set()

    def _run(self) -> None:
        wait_s = WAIT_S
        while not self._stop.wait(wait_s * random.uniform(0.8, 1.0)):
            wait_s = WAIT_S
            try:
                self._send()
            except Refused as refusal:
                if refusal.code == httpx.codes.UNAUTHORIZED:
                    self.failure = str(refusal)
                    return
                wait_s = RETRY_S
            except TransportError:
                wait_s = RETRY_S
