"""Takes a fleet's predictions in, each once, and tells the devices which they may forget.

    with PredictionFile(path) as file:
        consumer = PredictionConsumer(broker, "ward-7", file.keep, client_id="consumer-ward-7")
        consumer.start()

A prediction is acknowledged to its device after ``keep`` has returned, and to the broker after
that. So whoever is killed, and whenever, it comes again until it is kept, and what comes again is
known by (device, sequence).
"""

from __future__ import annotations

import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from fedge.backoff import Backoff
from fedge.errors import ConfigError, StoreError
from fedge.mqtt.connection import Connection, LinkOptions, Verdict
from fedge.mqtt.inbox import Inbox
from fedge.mqtt.link import Link
from fedge.mqtt.messages import Incoming
from fedge.mqtt.settings import BrokerConfig
from fedge.mqtt.topics import DeviceTopics, check_level, device_of, predictions_filter
from server.mqtt.prediction_file import Prediction

MAX_BATCH = 256
GATHER_S = 0.1  # one message acknowledges all that came meanwhile: each costs the broker a save
MAX_PREDICTION_BYTES = 2**20
MAX_SEQUENCE = 2**63 - 1
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 30.0

log = logging.getLogger(__name__)

Keep = Callable[[Sequence[Prediction]], int]


class PredictionConsumer:
    """One consumer of a fleet; its session at the broker goes by its client id.

    Args:
        config: the broker.
        fleet: whose predictions.
        keep: keeps predictions durably and returns how many of them were new; raises StoreError
            where it cannot, and is asked again.
        client_id: stays the same for ever, and is nobody else's.
    """

    def __init__(self, config: BrokerConfig, fleet: str, keep: Keep, *, client_id: str) -> None:
        self._fleet = fleet
        self._keep = keep
        options = LinkOptions(
            client_id, [predictions_filter(fleet)], max_incoming_bytes=MAX_PREDICTION_BYTES
        )
        self._link = Link(config, options, self)
        self._connection: Connection | None = None
        self._inbox = Inbox()
        self._stopping = threading.Event()
        self._retry = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._thread = threading.Thread(target=self._run, name="predictions", daemon=True)
        self._store_problem = ""
        self._num_kept = self._num_duplicates = self._num_rejected = 0

    @property
    def problem(self) -> str:
        """What is wrong; or empty."""
        return self._store_problem or self._link.problem

    def snapshot(self) -> dict[str, float]:
        """Return what is counted."""
        return {
            **self._link.snapshot(),
            "predictions_kept_total": float(self._num_kept),
            "predictions_duplicate_total": float(self._num_duplicates),
            "predictions_rejected_total": float(self._num_rejected),
        }

    def start(self) -> None:
        """Begin, in threads."""
        self._thread.start()
        self._link.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End; what was not acknowledged comes again."""
        self._link.stop(timeout_s)
        self._stopping.set()
        self._inbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def on_up(self, connection: Connection) -> None:
        """Acknowledge on this connection from now on."""
        self._connection = connection

    def on_down(self) -> None:
        """Forget what waits: it comes again."""
        self._connection = None
        self._inbox.clear()

    def on_message(self, message: Incoming) -> None:
        """Take a message without waiting."""
        self._inbox.offer(message)

    def on_published(self, connection: Connection, number: int, verdict: Verdict) -> None:
        """Note where acknowledgements are refused, or every prediction comes again for ever."""
        del connection, number
        if verdict.refusal:
            log.warning("the broker refuses acknowledgements to devices: %s", verdict.refusal)

    def _run(self) -> None:
        while not self._stopping.is_set():
            messages = self._inbox.take(MAX_BATCH, GATHER_S)
            while messages and not self._stopping.is_set():
                try:
                    self._work(messages)
                    messages = []
                    self._store_problem = ""
                    self._retry.reset()
                except StoreError as error:
                    if str(error) != self._store_problem:
                        log.error("predictions wait at the broker: %s", error)
                    self._store_problem = str(error)
                    self._stopping.wait(self._retry.next_delay_s())
                except Exception as error:
                    log.exception("keeping predictions failed; trying again")
                    self._store_problem = f"keeping predictions failed: {error!r}"
                    self._stopping.wait(self._retry.next_delay_s())
            if self._inbox.drained_after_overflow():
                self._link.reconnect()

    def _work(self, messages: list[Incoming]) -> None:
        predictions = [found for message in messages if (found := read_prediction(message))]
        if predictions:
            new = self._keep(predictions)
            self._num_kept += new
            self._num_duplicates += len(predictions) - new
            self._acknowledge(predictions)
        self._num_rejected += len(messages) - len(predictions)
        for message in messages:
            message.acknowledge()

    def _acknowledge(self, predictions: list[Prediction]) -> None:
        connection = self._connection
        if connection is None:
            return
        by_device: defaultdict[str, list[int]] = defaultdict(list)
        for prediction in predictions:
            by_device[prediction.device].append(prediction.sequence)
        for device, sequences in by_device.items():
            topic = DeviceTopics(self._fleet, device).acks
            connection.publish(topic, json.dumps({"sequences": sequences}))


def read_prediction(message: Incoming) -> Prediction | None:
    """Return the prediction of a message, None if it is something else."""
    device = device_of(message.topic)
    if len(message.payload) > MAX_PREDICTION_BYTES:
        return None
    try:
        check_level(device, "device")  # the filter lets any name pass, an empty one too
        body = json.loads(message.payload)
    except (ConfigError, ValueError, RecursionError):
        return None
    sequence = body.get("sequence") if isinstance(body, dict) else None
    if type(sequence) is not int or not 0 <= sequence <= MAX_SEQUENCE:
        return None
    return Prediction(device, sequence, body)
