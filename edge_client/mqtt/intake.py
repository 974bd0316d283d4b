"""Takes samples and labels in: read, answered, committed, and only then acknowledged.

One thread beside the network's. What comes while it works is taken together, so that a busy
device commits many samples in one wait for the disk.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from edge_client.mqtt.counters import Counters
from edge_client.mqtt.outbox import Answer, Outbox
from edge_client.mqtt.payloads import read_label, read_sample
from edge_client.mqtt.predictor import Predictor
from edge_client.mqtt.settings import SchemaConfig
from edge_client.sample_store import PreparedSample, SampleDatabase
from fedge.backoff import Backoff
from fedge.errors import FedgeError, InvalidSample, PayloadRejected, StoreError
from fedge.mqtt.messages import Incoming

MAX_BATCH = 64
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 30.0

log = logging.getLogger(__name__)


class Intake:
    """Works through what a broker sends.

    Args:
        schema: what samples and labels look like.
        labels_topic: messages of this topic are labels, all others are samples.
        samples: where samples are kept.
        outbox: where predictions wait.
        predictor: answers samples.
        counters: what is counted.
        sent: called when predictions were put into the outbox.
        capacity: messages that may wait at most.
    """

    def __init__(
        self,
        schema: SchemaConfig,
        labels_topic: str,
        samples: SampleDatabase,
        outbox: Outbox,
        predictor: Predictor,
        counters: Counters,
        *,
        sent: Callable[[], None],
        capacity: int,
    ) -> None:
        self._schema = schema
        self._labels_topic = labels_topic
        self._samples = samples
        self._outbox = outbox
        self._predictor = predictor
        self._counters = counters
        self._sent = sent
        self._capacity = capacity
        self._waiting: deque[Incoming] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._retry = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._store_problem = ""
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="mqtt-intake", daemon=True)

    @property
    def problem(self) -> str:
        """Why samples are not taken in or not answered; or empty."""
        return self._store_problem or self._predictor.problem

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the thread; what it has not acknowledged comes again."""
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def offer(self, message: Incoming) -> None:
        """Take a message without waiting; beyond the capacity, which only QoS 0 reaches, none."""
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self._counters.add("rejected_overflow")
                return
            self._waiting.append(message)
            self._changed.notify()

    def clear(self) -> None:
        """Forget what waits: its connection is gone, and the broker sends it again."""
        with self._changed:
            self._waiting.clear()

    def work(self, messages: list[Incoming]) -> None:
        """Take messages in, in order, and acknowledge them.

        Raises:
            StoreError: the disk does not take them; none was acknowledged.
        """
        ready: list[PreparedSample] = []
        answers: list[Answer] = []
        for message in messages:
            try:
                if message.topic == self._labels_topic:
                    self._keep_samples(ready, answers)
                    self._keep_label(message)
                else:
                    self._prepare(message, ready, answers)
            except PayloadRejected as error:
                self._reject(error.reason, error)
            except InvalidSample as error:
                self._reject("invalid", error)
        self._keep_samples(ready, answers)
        for message in messages:
            message.acknowledge()

    def _run(self) -> None:
        while not self._stopping.is_set():
            messages = self._take()
            while messages and not self._stopping.is_set():
                try:
                    self.work(messages)
                    messages = []
                    self._store_problem = ""
                    self._retry.reset()
                except StoreError as error:
                    if str(error) != self._store_problem:
                        log.error("samples wait at the broker: %s", error)
                    self._store_problem = str(error)
                    self._stopping.wait(self._retry.next_delay_s())
                except Exception:
                    messages = self._after_bug(messages)

    def _take(self) -> list[Incoming]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping.is_set())
            number = min(len(self._waiting), MAX_BATCH)
            return [self._waiting.popleft() for _ in range(number)]

    def _after_bug(self, messages: list[Incoming]) -> list[Incoming]:
        """Find the message that a bug of ours breaks on, and do without it."""
        if len(messages) > 1:
            with self._changed:
                self._waiting.extendleft(reversed(messages[1:]))
            return messages[:1]
        log.exception("a message is dropped: it breaks this program")
        self._counters.add("rejected_bug")
        messages[0].acknowledge()
        return []

    def _prepare(
        self, message: Incoming, ready: list[PreparedSample], answers: list[Answer]
    ) -> None:
        self._counters.add("samples_received")
        sample = read_sample(message, self._schema)
        prepared = self._samples.prepare(
            sample.sample_id,
            sample.inputs,
            sample.label,
            source=sample.source,
            sequence=sample.sequence,
        )
        answers.append(Answer(sample.source, sample.sequence, self._predictor.answer(sample)))
        ready.append(prepared)

    def _keep_samples(self, ready: list[PreparedSample], answers: list[Answer]) -> None:
        """Commit samples, then their predictions, which mark them as done.

        A kill between the two makes the broker send the samples again: the store knows them
        then, and the outbox does not.
        """
        if not ready:
            return
        self._samples.add_many(ready)
        new = self._outbox.put_many(answers)
        self._counters.add("samples_accepted", new)
        ready.clear()
        answers.clear()
        self._sent()

    def _keep_label(self, message: Incoming) -> None:
        self._counters.add("labels_received")
        label = read_label(message, self._schema)
        self._samples.label(label.sample_id, label.target, wait=True)

    def _reject(self, reason: str, error: FedgeError) -> None:
        self._counters.add(f"rejected_{reason.replace('-', '_')}")
        if reason not in self._told:
            self._told.add(reason)
            log.warning("a message is dropped, more like it are only counted: %s", error)
