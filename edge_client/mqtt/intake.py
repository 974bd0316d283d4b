"""Takes samples, labels and readings in: read, answered, committed, and only then acknowledged.

One thread beside the network's. What comes while it works is taken together, and where messages
follow each other closely it waits a little for more: a busy device commits many samples in one
wait for the disk, which leaves processor and interpreter to other predictions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edge_client.mqtt.answering import Answering
from edge_client.mqtt.counters import Counters
from edge_client.mqtt.outbox import Answer
from edge_client.mqtt.payloads import read_label, read_sample
from edge_client.mqtt.readings import ReadingsIntake
from edge_client.mqtt.settings import SchemaConfig
from edge_client.sample_store import PreparedSample, SampleDatabase
from edge_client.window_stream import Feed
from fedge.backoff import Backoff
from fedge.errors import FedgeError, InvalidSample, PayloadRejected, StoreError
from fedge.mqtt.inbox import Inbox
from fedge.mqtt.messages import Incoming
from fedge.mqtt.topics import DeviceTopics

MAX_BATCH = 64
GATHER_S = 0.02
"""While messages follow each other within so long, each waits so long for more."""
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 30.0

log = logging.getLogger(__name__)


class Intake:
    """Works through what a broker sends.

    Args:
        schema: what samples and labels look like.
        topics: say what is a label and what are readings; all else are samples.
        samples: where samples are kept.
        answering: answers them.
        readings: takes a sensor's readings.
        counters: what is counted.
        reconnect: called when messages had found no room and there is some again.
        inbox: messages that wait.
    """

    def __init__(
        self,
        schema: SchemaConfig,
        topics: DeviceTopics,
        samples: SampleDatabase,
        answering: Answering,
        readings: ReadingsIntake,
        counters: Counters,
        *,
        reconnect: Callable[[], None],
        inbox: Inbox | None = None,
    ) -> None:
        self._schema = schema
        self._topics = topics
        self._samples = samples
        self._answering = answering
        self._readings = readings
        self._counters = counters
        self._reconnect = reconnect
        self._inbox = inbox or Inbox()
        self._stopping = threading.Event()
        self._retry = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._store_problem = ""
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="mqtt-intake", daemon=True)

    @property
    def problem(self) -> str:
        """Why what comes is not taken in or not answered; or empty."""
        return self._store_problem or self._answering.problem

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the thread; what it has not acknowledged comes again."""
        self._stopping.set()
        self._inbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def offer(self, message: Incoming) -> None:
        """Take a message without waiting."""
        if not self._inbox.offer(message):
            self._counters.add("messages_postponed" if message.qos else "rejected_overflow")

    def clear(self) -> None:
        """Forget what waits: its connection is gone, and the broker sends it again."""
        self._inbox.clear()

    def work(self, messages: list[Incoming]) -> None:
        """Take messages in, in order, and acknowledge them.

        Raises:
            StoreError: the disk does not take them; none was acknowledged.
        """
        ready: list[PreparedSample] = []
        answers: list[Answer] = []
        feeds: list[Feed] = []
        for message in messages:
            try:
                if message.topic == self._topics.labels:
                    self._keep_samples(ready, answers)
                    self._keep_readings(feeds)
                    self._keep_label(message)
                elif message.topic == self._topics.readings:
                    feeds.append(self._readings.read(message))
                else:
                    self._prepare(message, ready, answers)
            except PayloadRejected as error:
                self._reject(error.reason, error)
            except InvalidSample as error:
                self._reject("invalid", error)
        self._keep_samples(ready, answers)
        self._keep_readings(feeds)
        for message in messages:
            message.acknowledge()

    def _run(self) -> None:
        gather_s = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            messages = self._inbox.take(MAX_BATCH, gather_s)
            gather_s = GATHER_S if time.monotonic() - began < gather_s + GATHER_S else 0.0
            while messages and not self._stopping.is_set():
                try:
                    self.work(messages)
                    messages = []
                    self._store_problem = ""
                    self._retry.reset()
                except StoreError as error:
                    if str(error) != self._store_problem:
                        log.error("what comes waits at the broker: %s", error)
                    self._store_problem = str(error)
                    self._stopping.wait(self._retry.next_delay_s())
                except Exception:
                    messages = self._after_bug(messages)
            if self._inbox.drained_after_overflow():
                self._reconnect()

    def _after_bug(self, messages: list[Incoming]) -> list[Incoming]:
        """Find the message that a bug of ours breaks on, and do without it."""
        if len(messages) > 1:
            self._inbox.put_back(messages[1:])
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
        answers.append(self._answering.answer(sample, sample.source, sample.sequence))
        ready.append(prepared)

    def _keep_samples(self, ready: list[PreparedSample], answers: list[Answer]) -> None:
        """Commit samples, then their predictions, which mark them as done.

        A kill between the two makes the broker send the samples again: the store knows them
        then, and the outbox does not.
        """
        if not ready:
            return
        self._samples.add_many(ready)
        self._counters.add("samples_accepted", self._answering.keep(answers))
        ready.clear()
        answers.clear()

    def _keep_readings(self, feeds: list[Feed]) -> None:
        """Take readings in; drop those whose windows neither model nor store can take."""
        try:
            self._readings.keep(feeds)
        except PayloadRejected as error:
            self._reject(error.reason, error, len(feeds))
        except InvalidSample as error:
            self._reject("invalid", error, len(feeds))
        feeds.clear()

    def _keep_label(self, message: Incoming) -> None:
        self._counters.add("labels_received")
        label = read_label(message, self._schema)
        self._samples.label(label.sample_id, label.target, wait=True)

    def _reject(self, reason: str, error: FedgeError, number: int = 1) -> None:
        self._counters.add(f"rejected_{reason.replace('-', '_')}", number)
        if reason not in self._told:
            self._told.add(reason)
            log.warning("a message is dropped, more like it are only counted: %s", error)
