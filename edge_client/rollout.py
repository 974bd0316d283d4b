"""Puts versions into service and takes them out again, with a note of both.

A version serves after its known answers were right and the device's own labels did not speak
against it. It leaves again if the daemon keeps dying under it, if labels that come in later speak
against it, or if a person says so. The one before it serves then, and it does not come back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from edge_client.crash_guard import Blame, CrashGuard
from edge_client.inference import Engine, Serving
from edge_client.local_voice import Comparison, LocalVoice
from edge_client.model_store import ModelStore, Prepared, StoredVersion, version_id
from edge_client.outcomes import Fate, Outcome
from edge_client.settings import ModelsConfig
from fedge.errors import ModelError
from fedge.manifest import ModelManifest

log = logging.getLogger(__name__)

POLL_S = 0.5
SHIPPED = "shipped"  # what the guard calls the model that the task brings along

Tell = Callable[[Outcome], None]
Clock = Callable[[], float]


class Rollout:
    """One device's versions in service; safe across threads.

    Args:
        store: holds the versions and what was decided about them.
        serving: gets each engine.
        guard: counts deaths; opened here.
        voice: the device's labels; None has none.
        fallback: returns the model as shipped, None if there is none.
        private: metrics and what follows from them are not told to the server.
    """

    def __init__(
        self,
        store: ModelStore,
        serving: Serving,
        config: ModelsConfig,
        *,
        guard: CrashGuard | None = None,
        voice: LocalVoice | None = None,
        fallback: Callable[[], Engine | None] = lambda: None,
        private: bool = False,
        num_threads: int = 1,
        clock: Clock = time.monotonic,
    ) -> None:
        self.store = store
        self._serving = serving
        self._config = config
        self._guard = guard
        self._voice = voice
        self._fallback = fallback
        self._private = private
        self._num_threads = num_threads
        self._clock = clock
        self._lock = threading.RLock()
        self._untold: list[Outcome] = []
        self._tell: Tell = self._untold.append
        self._on_choice: Callable[[], None] = lambda: None
        self._served = ""
        self._previous: StoredVersion | None = None
        self._since = clock()
        self._looked_at = clock()
        self._proven = True
        self._choices_stamp = store.choices.stamp()
        self.problem = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rollout", daemon=True)

    def listen(self, tell: Tell, on_choice: Callable[[], None]) -> None:
        """Have each outcome told, those before now too, and each choice of a person."""
        with self._lock:
            self._tell, self._on_choice = tell, on_choice
            while self._untold:
                tell(self._untold.pop(0))

    def open(self, *, crashed: bool = False) -> None:
        """Serve the version to begin with: what is stored, else what was shipped, else none.

        Args:
            crashed: whether the last process died by itself.
        """
        if self._guard is not None:
            blame = self._guard.open(crashed=crashed)
            try:
                self._heed(blame)
            except ModelError as error:  # a disk that takes no note must not end predictions
                log.error("%s; the version to blame serves again", error)
                self.problem = str(error)
        try:
            self._serve_best()
        except ModelError as error:
            log.warning("%s", error)

    @property
    def names_version(self) -> bool:
        """Whether the server may see which version serves: not where private labels decide it."""
        return not (self._private and self._voice is not None and self._config.max_metric_drop)

    def start(self) -> None:
        """Begin to watch over what is served, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and note a clean stop."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        if self._guard is not None:
            self._guard.close()

    def wants(self, manifest: ModelManifest, content: bytes) -> bool:
        """Tell whether a version that was published is to be fetched and taken.

        Raises:
            ModelError: this device refused it before.
        """
        id, choices = version_id(content), self.store.choices.read()
        if id in choices.refused:
            if not self._private:
                self._note(id, Fate.REJECTED, choices.refused[id])
            raise ModelError(f"round {manifest.round} was refused here: {choices.refused[id]}")
        if choices.pinned not in ("", id):
            log.info("round %d is ignored: %.12s is pinned", manifest.round, choices.pinned)
            return False
        current = self.store.current()
        if current is None:
            return True
        if current.id == id:
            if self._served != id:
                self._serve_best()
            if not self._private:
                self._note(id, Fate.SERVED, "")  # again: the server may not have heard it
            return False
        same_run = current.manifest.run_name == manifest.run_name
        if same_run and manifest.round < current.manifest.round:
            have = current.manifest.round
            log.info("round %d is ignored: round %d is here", manifest.round, have)
            return False
        return True

    def take(self, content: bytes, signature: bytes, blobs: Mapping[str, bytes]) -> None:
        """Check a published version, keep it and serve it from the next request on.

        Raises:
            ModelError: it must not be used, or cannot be kept; what serves goes on serving.
        """
        with self._lock:
            owner = self._trying(version_id(content))
            try:
                prepared, comparison = self._prepare(content, signature, blobs)
                self._serving.reload(lambda: self._commit(prepared))
            except BaseException:
                self._trying(owner)
                raise
            self.problem = ""
            self._note(prepared.id, Fate.SERVED, "", comparison)
            log.info("serving round %d of %s", prepared.manifest.round, prepared.manifest.run_name)

    def check(self) -> None:
        """Do what is due: follow a person's choice, believe or leave what is served."""
        with self._lock:
            self._follow_choices()
            now = self._clock()
            if not self._proven and now - self._since >= self._config.healthy_s:
                self._prove()
            on_probation = now - self._since < self._config.probation_s
            if on_probation and now - self._looked_at >= self._config.check_s:
                self._looked_at = now
                self._look_at_labels()

    def _prove(self) -> None:
        """Believe in what is served once it has answered; in a hung engine this hangs, too."""
        engine = self._serving.engine
        if engine is not None:
            engine.predict(np.zeros(engine.input_shape, engine.input_dtype))
        self._proven = True
        if self._guard is not None:
            self._guard.healthy()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            try:
                self.check()
            except ModelError as error:
                log.error("%s", error)
            except Exception:  # whatever it is, versions must go on being watched
                log.exception("watching over the model failed; trying again")

    def _prepare(
        self, content: bytes, signature: bytes, blobs: Mapping[str, bytes]
    ) -> tuple[Prepared, Comparison | None]:
        id, comparison = version_id(content), None
        try:
            prepared = self.store.prepare(content, signature, blobs, self._num_threads)
        except ModelError as error:
            self._note(id, Fate.REJECTED, str(error))
            raise
        before = self._serving.engine
        if self._voice is not None and before is not None:
            comparison = self._voice.compare(prepared.engine, before)
        if comparison is not None and comparison.reason:
            self.store.choices.refuse(id, comparison.reason)
            self._choices_stamp = self.store.choices.stamp()
            self._note(id, Fate.REJECTED, comparison.reason, comparison)
            raise ModelError(f"round {prepared.manifest.round} is not served: {comparison.reason}")
        return prepared, comparison

    def _commit(self, prepared: Prepared) -> Engine:
        before = self.store.current()
        stored = self.store.commit(prepared)
        self._begin(stored.id, before)
        return prepared.engine

    def _serve_best(self) -> None:
        """Serve the version that is to be served as things are.

        Raises:
            ModelError: there is none, and none was shipped.
        """
        self._serving.reload(self._load_best)

    def _load_best(self) -> Engine:
        try:
            engine = self.store.load_engine(self._num_threads, self._trying)
        except ModelError:
            self._trying(SHIPPED)
            shipped = self._fallback()
            if shipped is None:
                self._trying("")
                raise
            self._begin(SHIPPED, None)
            return shipped
        stored = self.store.current()
        assert stored is not None  # what was just loaded
        older = [each for each in self.store.versions() if each.number < stored.number]
        refused = self.store.choices.read().refused
        self._begin(stored.id, next((each for each in older if each.id not in refused), None))
        return engine

    def _begin(self, id: str, previous: StoredVersion | None) -> None:
        """Note what serves from now on, on probation."""
        self._served, self._previous = id, previous
        self._since = self._looked_at = self._clock()
        self._proven = False

    def _follow_choices(self) -> None:
        stamp = self.store.choices.stamp()
        if stamp == self._choices_stamp:
            return
        self._choices_stamp = stamp
        wanted = self.store.current()
        if wanted is None or wanted.id != self._served:
            reason = self.store.choices.read().refused.get(self._served)
            if reason is not None:
                self._note(self._served, Fate.ROLLED_BACK, reason)
            self._serve_best()
            log.warning("another version serves, as a person chose")
        self._on_choice()

    def _look_at_labels(self) -> None:
        """Leave a version that the labels speak against by now."""
        engine = self._serving.engine
        if self._voice is None or engine is None or self._previous is None:
            return
        if self.store.choices.read().pinned == self._served:
            return
        try:
            before = self.store.load_number(self._previous.number, self._num_threads)
        except ModelError as error:
            log.info("there is no version before to compare with: %s", error)
            self._previous = None
            return
        comparison = self._voice.compare(engine, before)
        if comparison is not None and comparison.reason:
            self._refuse(self._served, comparison.reason, comparison)
            self._serve_best()

    def _heed(self, blame: Blame) -> None:
        if blame.allow:
            log.warning("the version before dies too: %.12s is served again", blame.allow)
            self.store.choices.allow(blame.allow)
        if blame.refuse not in ("", SHIPPED):
            self._refuse(blame.refuse, "the daemon died again and again soon after it served")

    def _refuse(self, id: str, reason: str, comparison: Comparison | None = None) -> None:
        """Let a version never serve again."""
        self.store.choices.refuse(id, reason)
        log.error("version %.12s is taken out of service: %s", id, reason)
        self.problem = f"a version was taken out of service: {reason}"
        self._choices_stamp = self.store.choices.stamp()
        self._note(id, Fate.ROLLED_BACK, reason, comparison)

    def _note(self, id: str, fate: Fate, reason: str, comparison: Comparison | None = None) -> None:
        """Tell the server, but nothing that follows from private labels."""
        if self._private and comparison is not None:
            if fate is Fate.ROLLED_BACK:
                return
            fate, reason, comparison = Fate.SERVED, "", None  # as without any labels
        outcome = Outcome(id, fate, reason)
        if comparison is not None:
            outcome = Outcome(
                *(id, fate, reason, comparison.metric, comparison.metric_before),
                comparison.num_labelled,
            )
        self._tell(outcome)

    def _trying(self, id: str) -> str:
        return "" if self._guard is None else self._guard.trying(id)
