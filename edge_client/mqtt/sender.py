"""Sends what waits in the outbox, in order, and deletes what was acknowledged.

One thread. Predictions leave in the order of their numbers, at most so many unacknowledged. Each
is sent again on a new connection, and after a time that doubles while nobody acknowledges it: once
one that was sent after it is acknowledged, or nothing at all is. A broker that is merely slow gets
nothing twice, which would only make it slower.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_client.mqtt.counters import Counters
from edge_client.mqtt.outbox import Outbox, OutboxRow
from edge_client.mqtt.settings import OutboxConfig
from fedge.backoff import Backoff
from fedge.errors import StoreError
from fedge.mqtt.connection import Verdict

LONGEST_RESEND_S = 3600.0
LONGEST_WAIT_S = 3600.0
PACKET_OVERHEAD_BYTES = 512
MAX_EVENTS = 1024
GATHER_S = 0.01
"""After an acknowledgement more are waited for, so that one commit deletes many."""
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 30.0

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """One connection, as the sender sees it."""

    @property
    def receive_maximum(self) -> int:
        """Messages that the broker takes unacknowledged."""

    @property
    def maximum_packet_size(self) -> int:
        """Bytes of a packet that it takes."""

    def publish(self, topic: str, payload: bytes | str, *, retain: bool = False) -> int:
        """Send a message; return its number."""


@dataclass
class Sent:
    """A prediction that was sent on this connection.

    Attributes:
        at: when it was sent last.
        due: when it may be sent again.
        attempts: how often it was sent.
    """

    at: float = 0.0
    due: float = 0.0
    attempts: int = 0


Event = Callable[[], None]


class Sender:
    """Moves predictions from the outbox to the broker.

    Args:
        outbox: what waits.
        topic: of the predictions.
        device: name of this device.
        config: who must acknowledge, how many may be under way.
        counters: what is counted.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        outbox: Outbox,
        topic: str,
        device: str,
        config: OutboxConfig,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._topic = topic
        self._prefix = f'{{"device":{json.dumps(device)},"sequence":'.encode()
        self._config = config
        self._counters = counters
        self._clock = clock
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._retry = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._thread = threading.Thread(target=self._run, name="mqtt-sender", daemon=True)
        self._publisher: Publisher | None = None
        self._sent: dict[int, Sent] = {}
        self._numbers: dict[int, int] = {}  # of the broker's answers → of the predictions
        self._last = 0
        self._heard_at = 0.0  # when the broker or the consumer last answered anything
        self._overtaken_at = float("-inf")  # what was sent before this was overtaken
        self._confirmed: set[int] = set()
        self._after_delete: list[Event] = []
        self._refusal = ""
        self._store_problem = ""

    @property
    def problem(self) -> str:
        """Why predictions do not leave; or empty."""
        refusal = self._refusal and f"the broker refuses predictions: {self._refusal}"
        return self._store_problem or refusal

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the thread; what was not acknowledged is sent again by the next one."""
        self._stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def wake(self) -> None:
        """Look into the outbox: something was put there."""
        self._events.put(lambda: None)

    def connected(self, publisher: Publisher | None) -> None:
        """Use this connection from now on; None while there is none."""
        self._events.put(lambda: self._switch(publisher))

    def published(self, publisher: Publisher, number: int, verdict: Verdict) -> None:
        """Take the broker's answer to one message."""
        self._events.put(lambda: self._answered(publisher, number, verdict))

    def consumed(self, sequences: list[int], then: Event) -> None:
        """Delete what the consumer has; ``then`` is called once that is durable."""
        self._events.put(lambda: self._consumed(sequences, then))

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._take_events(wait_s)
            try:
                self._delete_confirmed()
                self._send_again()
                self._send_new()
            except StoreError as error:
                if str(error) != self._store_problem:
                    log.error("%s", error)
                self._store_problem = str(error)
                self._stopping.wait(self._retry.next_delay_s())
                wait_s = 0.0
            except Exception:  # a bug must not end the thread silently
                log.exception("sending predictions failed; trying again")
                self._stopping.wait(self._retry.next_delay_s())
                wait_s = 0.0
            else:
                self._store_problem = ""
                self._retry.reset()
                wait_s = self._next_due_s()

    def _take_events(self, wait_s: float) -> None:
        """Wait for something to happen, then take all that has."""
        try:
            self._events.get(timeout=wait_s)() if wait_s > 0 else self._events.get_nowait()()
            if self._confirmed:
                self._stopping.wait(GATHER_S)
            for _ in range(MAX_EVENTS):
                self._events.get_nowait()()
        except queue.Empty:
            pass

    def _switch(self, publisher: Publisher | None) -> None:
        self._publisher = publisher
        self._sent.clear()
        self._numbers.clear()
        self._last = 0
        self._heard_at = self._clock()
        self._overtaken_at = float("-inf")

    def _answered(self, publisher: Publisher, number: int, verdict: Verdict) -> None:
        if publisher is not self._publisher:
            return
        sequence = self._numbers.pop(number, None)
        if sequence is None:  # it was not a prediction
            return
        self._heard_at = self._clock()
        self._refusal = verdict.refusal
        if verdict.refusal:  # it is sent again when it is due
            self._counters.add("predictions_not_taken")
            return
        if not verdict.heard:
            self._counters.add("predictions_unheard")
        if self._config.acknowledge == "broker":
            self._confirmed.add(sequence)

    def _consumed(self, sequences: list[int], then: Event) -> None:
        self._heard_at = self._clock()
        self._confirmed.update(sequences)
        self._after_delete.append(then)

    def _delete_confirmed(self) -> None:
        if self._confirmed:
            deleted = self._outbox.delete(self._confirmed)
            self._counters.add("predictions_delivered", deleted)
            for sequence in self._confirmed:
                sent = self._sent.pop(sequence, None)
                if sent is not None and sent.attempts == 1:
                    self._overtaken_at = max(self._overtaken_at, sent.at)
            self._confirmed.clear()
        while self._after_delete:
            self._after_delete.pop()()

    def _send_again(self) -> None:
        now = self._clock()
        ready = [number for number, sent in self._sent.items() if self._ready_at(sent) <= now]
        for sequence in ready:
            row = self._outbox.read(sequence)
            if row is None:  # it made room for newer ones
                del self._sent[sequence]
            elif self._room() > 0:
                self._send(row)
                self._counters.add("predictions_resent")

    def _send_new(self) -> None:
        while (room := self._room()) > 0 and len(self._sent) < self._config.in_flight:
            limit = min(room, self._config.in_flight - len(self._sent))
            rows = self._outbox.head(self._last, limit)
            for row in rows:
                self._send(row)
                self._last = row.sequence
            if len(rows) < limit:
                return

    def _room(self) -> int:
        """Return how many messages the broker takes now; one is left for our status."""
        if self._publisher is None:
            return 0
        return max(self._publisher.receive_maximum - 1, 1) - len(self._numbers)

    def _send(self, row: OutboxRow) -> None:
        assert self._publisher is not None
        payload = b"%b%d,%b" % (self._prefix, row.sequence, row.body[1:])
        size = len(payload) + len(self._topic) + PACKET_OVERHEAD_BYTES
        if size > self._publisher.maximum_packet_size:
            self._outbox.delete([row.sequence])
            self._sent.pop(row.sequence, None)
            self._counters.add("predictions_too_large")
            return
        number = self._publisher.publish(self._topic, payload)
        self._numbers[number] = row.sequence
        sent = self._sent.setdefault(row.sequence, Sent())
        delay_s = self._config.resend_after_s * 2 ** min(sent.attempts, 30)
        sent.attempts += 1
        sent.at = self._clock()
        sent.due = sent.at + min(delay_s, max(LONGEST_RESEND_S, self._config.resend_after_s))
        self._counters.add("predictions_sent")

    def _ready_at(self, sent: Sent) -> float:
        """Return when to send it again, as far as is known now."""
        if sent.at < self._overtaken_at:
            return sent.due
        return max(sent.due, self._heard_at + self._config.resend_after_s)

    def _next_due_s(self) -> float:
        if not self._sent or self._room() <= 0:
            return LONGEST_WAIT_S  # until something happens
        earliest = min(map(self._ready_at, self._sent.values())) - self._clock()
        return min(max(earliest, 0.01), LONGEST_WAIT_S)
