"""What watches over a device while it serves: self-check, watchdog, metrics page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from edge_client.inference import Serving
from edge_client.metrics import Metrics
from edge_client.process_figures import process_figures
from edge_client.pulse import Pulse
from edge_client.self_check import ANSWER_WITHIN_S, NOT_CHECKED, SelfCheck
from edge_client.watchdog import INTERVAL_S, Watchdog
from fedge.errors import ConfigError
from fedge.metrics_page import serve_page
from fedge.service_manager import ServiceManager

STALE_S = 2 * INTERVAL_S + ANSWER_WITHIN_S

log = logging.getLogger(__name__)


class Operation:
    """Lets a person, Prometheus and systemd see how this device is.

    Args:
        manager: the service manager that started this process, if one did.
        metrics_address: of the page for Prometheus; empty for none.

    Attributes:
        metrics: every part adds its numbers here.
        pulses: every loop beside the predictions adds its signs of life here, by name.
    """

    def __init__(self, manager: ServiceManager, metrics_address: str = "") -> None:
        self.metrics = Metrics()
        self.pulses: dict[str, Pulse] = {}
        self._manager = manager
        self._address = metrics_address
        self._check: SelfCheck | None = None
        self._page_problem = ""

    def start(
        self, stack: ExitStack, serving: Serving, socket: Path, describe: Callable[[], str]
    ) -> None:
        """Begin to watch a service that is up; the stack ends it.

        Args:
            stack: of the daemon.
            serving: the engine.
            socket: of the prediction service.
            describe: one line for the service manager.
        """
        self._check = SelfCheck(serving, socket, self.pulses)
        started = time.monotonic()
        self.metrics.add("serving", serving.snapshot, prefix="")
        self.metrics.add("self-check", self._check.snapshot, prefix="")
        self.metrics.add("process", process_figures)
        self.metrics.add(
            "daemon", lambda: {"uptime_seconds": time.monotonic() - started}, prefix=""
        )
        self._serve_page(stack)
        watchdog = Watchdog(self._check, self._manager, describe)
        watchdog.start()
        stack.callback(watchdog.stop)

    def stopping(self) -> None:
        """Say that this device is ending."""
        self._manager.stopping()

    @property
    def problem(self) -> str:
        """What is wrong with the service itself, or nothing."""
        problems = (self.health, self._page_problem)
        return "; ".join(problem for problem in problems if problem)

    @property
    def health(self) -> str:
        """Why predictions are not answered, or nothing."""
        return NOT_CHECKED if self._check is None else self._check.problem(STALE_S)

    def _serve_page(self, stack: ExitStack) -> None:
        """Serve the page; a device without it still predicts."""
        if not self._address:
            return
        try:
            page = serve_page(self._address, self.metrics.render, key="metrics_address")
        except ConfigError as error:
            log.error("%s", error)
            self._page_problem = str(error)
            return
        stack.callback(page.close)
        log.info("metrics on http://%s/metrics", self._address)
