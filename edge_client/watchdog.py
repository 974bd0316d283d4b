"""Checks this device again and again, and tells the service manager while it answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edge_client.self_check import SelfCheck
from fedge.service_manager import ServiceManager

INTERVAL_S = 10.0
STARTING_INTERVAL_S = 0.5
STOP_S = 0.5
PASSES_PER_PERIOD = 3  # one check that comes late must not restart a device that answers

log = logging.getLogger(__name__)


class Watchdog:
    """One thread that checks; a check that fails or hangs keeps the sign of life back.

    Args:
        check: what is looked at.
        manager: told READY once, after the first check that passed, and then of each pass.
        describe: one line about this device, for ``systemctl status``.
    """

    def __init__(
        self, check: SelfCheck, manager: ServiceManager, describe: Callable[[], str]
    ) -> None:
        self._check = check
        self._manager = manager
        self._describe = describe
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        period_s = manager.watchdog_s
        self.interval_s = (
            INTERVAL_S if period_s is None else min(INTERVAL_S, period_s / PASSES_PER_PERIOD)
        )

    def start(self) -> None:
        """Begin with a check at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, without waiting for a check that hangs."""
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        is_ready = False
        while not self._stop.is_set():
            try:
                problem = self._check.run()
            except Exception as error:  # a bug must show as missing signs of life, not as silence
                log.exception("the self-check failed")
                problem = f"{type(error).__name__} in the self-check; the log says more"
            if self._stop.is_set():
                return
            if problem:
                self._manager.status(problem)
            else:
                if not is_ready:
                    self._manager.ready()
                    is_ready = True
                self._manager.alive()
                self._manager.status(self._describe())
            self._stop.wait(self.interval_s if is_ready else STARTING_INTERVAL_S)
