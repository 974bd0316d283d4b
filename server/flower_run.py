"""Keeps the SuperLink and the submitted run going: what dies is started again, the run resumes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedge.errors import TransportError
from server.app_bundle import AppBundle
from server.superlink import StopRequested, SuperLink

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 5
FIRST_DELAY_S = 0.5
# Installing the bundle and importing torch come before the ServerApp can be seen at work.
APPEAR_S = 60.0
LAST_WORDS_S = 5.0
HEALTHY_S = 600.0


class FlowerRun:
    """One run on one SuperLink.

    Args:
        progress: something that changes whenever the run gets ahead (its last committed round);
            it, and ten minutes without a death, make the count of attempts begin anew.
        log_path: gets what the last ServerApp logged.
        stop: once set, whatever waits raises `StopRequested`.
    """

    def __init__(
        self,
        superlink: SuperLink,
        bundle: AppBundle,
        *,
        progress: Callable[[], object],
        log_path: Path,
        stop: threading.Event,
    ) -> None:
        self._superlink = superlink
        self._bundle = bundle
        self._progress = progress
        self._log_path = log_path
        self._stop = stop
        self._run_id: int | None = None
        self._submitted_at = 0.0
        self._appeared = False
        self._attempts = 0
        self._last_attempt_at = 0.0
        self._progress_seen: object = None

    def start(self) -> None:
        """Start the SuperLink and submit the run.

        Raises:
            FedgeError: either cannot be done.
            StopRequested: while waiting.
        """
        self._superlink.start()
        self._submit()

    def missing(self) -> str:
        """Return what has died: ``SuperLink``, ``ServerApp`` or nothing."""
        health = self._superlink.look()
        if not health.superlink:
            return "SuperLink"
        self._appeared = self._appeared or health.server_app
        waited = time.monotonic() - self._submitted_at
        if health.server_app or not (self._appeared or waited > APPEAR_S):
            return ""
        return "ServerApp"

    def restore(self, missing: str, *, resubmit: bool = True) -> None:
        """Start again what died, after a while.

        Args:
            missing: what `missing` returned.
            resubmit: False once the run has finished: then the SuperLink alone is restored.

        Raises:
            TransportError: it died too often without progress.
            StopRequested: while waiting.
        """
        reason = self.save_log() if missing == "ServerApp" else "its process ended"
        while True:
            self._count_attempt(missing, reason)
            try:
                if missing == "SuperLink":
                    self._superlink.end()  # helpers that outlived it
                    self._superlink.start()
                if resubmit:
                    self._submit()
                return
            except TransportError as error:
                reason = str(error)
                missing = "SuperLink" if not self._superlink.look().superlink else missing

    def save_log(self) -> str:
        """Keep what the ServerApp logged in a file and return the error that ended it.

        Raises:
            StopRequested: while waiting for its last words.
        """
        if self._run_id is None:
            return ""
        give_up = time.monotonic() + LAST_WORDS_S
        while self._superlink.look().server_app and time.monotonic() < give_up:
            if self._stop.wait(0.1):
                raise StopRequested
        return self._superlink.save_log(self._run_id, self._log_path)

    def _submit(self) -> None:
        self._run_id = self._superlink.submit(self._bundle)
        self._submitted_at = time.monotonic()
        self._appeared = False
        log.info("submitted Flower run %d", self._run_id)

    def _count_attempt(self, missing: str, reason: str) -> None:
        progress, now = self._progress(), time.monotonic()
        if progress != self._progress_seen or now > self._last_attempt_at + HEALTHY_S:
            self._attempts, self._progress_seen = 0, progress
        self._attempts += 1
        self._last_attempt_at = now
        if self._attempts > MAX_ATTEMPTS:
            raise TransportError(
                f"the {missing} died {self._attempts} times without a round in between: "
                f"{reason} (see {self._log_path} and {self._superlink.log_path})"
            )
        delay_s = FIRST_DELAY_S * 2 ** (self._attempts - 1)
        log.warning("the %s died (%s); starting it again in %g s", missing, reason, delay_s)
        if self._stop.wait(delay_s):
            raise StopRequested
