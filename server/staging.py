"""Who gets which version: a new one goes to canaries first, and to all if they do not refuse it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from server.canary import Clock, Trial, Verdict
from server.export import ExportedModel
from server.publisher import PublishedVersion, Publisher, Stage
from server.settings import CanaryConfig

log = logging.getLogger(__name__)

Note = Callable[..., None]
"""Takes a kind of event and its fields."""


class Staging:
    """Publishes versions in stages; safe across threads. `check` is called now and then.

    Args:
        config: without a fraction every version goes to all at once.
        note: is told how trials begin and end.
    """

    def __init__(
        self,
        publisher: Publisher,
        config: CanaryConfig | None = None,
        note: Note | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.publisher = publisher
        self._config = config or CanaryConfig()
        self._note = note or _keep_quiet
        self._clock = clock
        self._lock = threading.Lock()
        self._trial: Trial | None = None
        if publisher.candidate is not None:  # a restart interrupted its trial
            if self._config.fraction:
                self._begin(publisher.candidate)
            else:
                publisher.promote()
        publisher.listen(self._heard)  # before the registry does: it wakes watchers

    @property
    def on_trial(self) -> bool:
        """Whether a version is on trial, so that no newer one can be."""
        return self._trial is not None

    def publish(self, round: int, model: ExportedModel) -> None:
        """Publish a version: to all, or to the canaries and see.

        Raises:
            ModelError: it cannot be stored.
        """
        self.publisher.publish(
            round, model, Stage.TRIAL if self._config.fraction else Stage.PUBLISHED
        )

    def version_for(self, node: str) -> PublishedVersion | None:
        """Return the version that a device is to have now."""
        trial, candidate = self._trial, self.publisher.candidate
        if trial is not None and candidate is not None and trial.includes(node):
            return candidate
        return self.publisher.latest

    def told(self, node: str, version: PublishedVersion) -> None:
        """Note that a device was sent a version."""
        trial = self._trial
        if trial is not None and trial.version == version.id:
            trial.told(node)

    def report(self, node: str, version: str, reason: str) -> None:
        """Note what a device says of a version: why it does not serve it; empty if it does."""
        if reason:
            log.warning("%s does not serve version %.12s: %s", node[:12], version, reason)
        trial = self._trial
        if trial is not None and trial.version == version:
            trial.report(node, reason)

    def check(self) -> None:
        """End a trial that is over.

        Raises:
            ModelError: its end cannot be stored.
        """
        with self._lock:
            verdict = None if self._trial is None else self._trial.verdict()
            candidate = self.publisher.candidate
            if verdict is None or candidate is None:
                return
            if verdict.promoted:
                self.publisher.promote()
            else:
                self.publisher.withdraw()
            self._trial = None
            self._note_end(candidate, verdict)

    def _heard(self, version: PublishedVersion) -> None:
        if version.stage is Stage.TRIAL:
            self._begin(version)

    def _begin(self, version: PublishedVersion) -> None:
        if self._trial is None or self._trial.version != version.id:
            self._trial = Trial(version.id, version.manifest.round, self._config, self._clock)
            self._note("version-on-trial", round=version.manifest.round, version=version.id)

    def _note_end(self, version: PublishedVersion, verdict: Verdict) -> None:
        kind = "version-promoted" if verdict.promoted else "version-withdrawn"
        say = log.info if verdict.promoted else log.error
        say("%s: round %d, %s", kind, version.manifest.round, verdict)
        self._note(
            kind,
            round=version.manifest.round,
            version=version.id,
            served=verdict.served,
            refused=verdict.refused,
            reasons=list(verdict.reasons),
        )


def _keep_quiet(kind: str, **fields: object) -> None:
    del kind, fields
