"""The thread that turns each new checkpoint into a published version."""

from __future__ import annotations

import logging
import threading
import time

from fedge.errors import FedgeError
from server.checkpoint import CheckpointStore
from server.export import Exporter
from server.staging import Staging

log = logging.getLogger(__name__)

POLL_S = 0.1
RETRY_S = 5.0


class PublishingLoop:
    """Watches a run's checkpoints; rounds that come faster than they export are skipped.

    A round that cannot be published is tried again until a newer one takes its place. While a
    version is on trial no newer one is published, or none would ever end its trial.
    """

    def __init__(self, store: CheckpointStore, exporter: Exporter, staging: Staging) -> None:
        self._store = store
        self._exporter = exporter
        self._staging = staging
        self._stop = threading.Event()
        self._published: int | None = None
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="publishing", daemon=True)

    @property
    def problem(self) -> str:
        """Why the newest checkpoint is not published; empty if it is, or is not tried yet."""
        return self._problem

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Ask the thread to end, and wait for it a while; a conversion may take longer."""
        self._stop.set()
        self._thread.join(grace_s)

    def caught_up(self) -> bool:
        """Tell whether the newest checkpoint is published and no longer on trial."""
        newest = self._store.latest_round()
        return newest is not None and newest == self._published and not self._staging.on_trial

    def _run(self) -> None:
        retry_at = 0.0
        tried: int | None = None
        while not self._stop.wait(POLL_S):
            newest = self._store.latest_round()
            waits = newest == tried and time.monotonic() < retry_at
            try:
                self._staging.check()
                if newest in (None, self._published) or waits or self._staging.on_trial:
                    continue
                tried = newest
                self._publish_latest()
                self._problem = ""
            except FedgeError as error:
                self._complain(f"round {newest} is not published: {error}")
            except Exception as error:  # a bug in a task must not end the thread silently
                log.debug("while publishing round %d", newest, exc_info=True)
                self._complain(f"round {newest} is not published: {type(error).__name__}: {error}")
            retry_at = time.monotonic() + RETRY_S

    def _publish_latest(self) -> None:
        checkpoint = self._store.latest()
        if checkpoint is None:
            return
        model = self._exporter.export(checkpoint.layout, checkpoint.weights)
        self._staging.publish(checkpoint.round, model)
        self._published = checkpoint.round

    def _complain(self, problem: str) -> None:
        if problem != self._problem:
            log.error("%s", problem)
        self._problem = problem
