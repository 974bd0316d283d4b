"""MQTT on one device: link, intake, outbox and sender, put together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from edge_client.mqtt.acks import read_acks
from edge_client.mqtt.answering import Answering
from edge_client.mqtt.counters import Counters
from edge_client.mqtt.intake import Intake
from edge_client.mqtt.outbox import Outbox
from edge_client.mqtt.predictor import Predicting, Predictor
from edge_client.mqtt.readings import ReadingsIntake
from edge_client.mqtt.sender import Sender
from edge_client.mqtt.settings import MqttConfig
from edge_client.opened_later import OpenedLater
from edge_client.sample_store import SampleDatabase
from edge_client.window_stream import WindowStream
from fedge.errors import FedgeError, PayloadRejected
from fedge.mqtt.connection import Connection, LinkOptions, Verdict
from fedge.mqtt.link import Link
from fedge.mqtt.messages import Incoming
from fedge.mqtt.topics import DeviceTopics

PACKET_SLACK_BYTES = 64 * 1024
MIN_LOOK_INTERVAL_S = 1.0
COUNTED = (
    *("samples_received", "samples_accepted", "samples_unanswered", "labels_received"),
    *("readings_messages_received", "readings_accepted", "readings_repeated", "windows_accepted"),
    "messages_postponed",
    *("predictions_sent", "predictions_resent", "predictions_delivered"),
    *("predictions_not_taken", "predictions_unheard", "predictions_too_large"),
)

log = logging.getLogger(__name__)


class MqttPart:
    """Everything of MQTT on one device; the listener of its link.

    Args:
        config: the broker, the schema, the outbox.
        topics: of this device.
        path: of the outbox.
        serving: answers samples.
        samples: keeps them.
        stream: cuts readings into windows.
        look_now: called when a new version is announced.
    """

    def __init__(
        self,
        config: MqttConfig,
        topics: DeviceTopics,
        path: Path,
        serving: Predicting,
        samples: SampleDatabase,
        stream: WindowStream,
        look_now: Callable[[], None],
    ) -> None:
        self._topics = topics
        self._look_now = look_now
        self._looked_at = float("-inf")
        self._link = Link(config.broker, link_options(config, topics), self)
        self._counters = counters = Counters(*COUNTED)
        opened = OpenedLater(lambda: Outbox(path, config.outbox))
        self._outbox = cast("Outbox", opened)
        self._sender = Sender(
            self._outbox, topics.predictions, topics.device, config.outbox, counters
        )
        answering = Answering(Predictor(serving, counters), self._outbox, self._sender.wake)
        self._intake = Intake(
            config.schema,
            topics,
            samples,
            answering,
            ReadingsIntake(config.schema, stream, answering, counters),
            counters,
            reconnect=self._link.reconnect,
        )

    @property
    def problem(self) -> str:
        """What is wrong; or empty."""
        problems = (self._link.problem, self._intake.problem, self._sender.problem)
        return "; ".join(f"mqtt: {problem}" for problem in problems if problem)

    def snapshot(self) -> dict[str, float]:
        """Return every figure by name; those that only grow end in ``_total``.

        Raises:
            StoreError: the outbox cannot be read.
        """
        return {
            **self._link.snapshot(),
            **self._counters.snapshot(),
            **self._outbox.snapshot(),
        }

    def start(self) -> None:
        """Begin, in threads."""
        self._sender.start()
        self._intake.start()
        self._link.start()

    def stop(self) -> None:
        """End the link, then what worked for it."""
        self._link.stop()
        self._intake.stop()
        self._sender.stop()
        self._outbox.close()

    def on_up(self, connection: Connection) -> None:
        """Say that we are here, and send what waits."""
        connection.publish(self._topics.status, "online", retain=True)
        self._sender.connected(connection)

    def on_down(self) -> None:
        """Stop sending."""
        self._sender.connected(None)
        self._intake.clear()

    def on_published(self, connection: Connection, number: int, verdict: Verdict) -> None:
        """Pass it on."""
        self._sender.published(connection, number, verdict)

    def on_message(self, message: Incoming) -> None:
        """Pass it on; whatever it is, nothing is raised into the network's thread."""
        if message.topic in (self._topics.samples, self._topics.labels, self._topics.readings):
            self._intake.offer(message)
            return
        try:
            if message.topic == self._topics.acks:
                self._sender.consumed(read_acks(message), message.acknowledge)
                return
            self._announced()
        except PayloadRejected as error:
            self._counters.add(f"rejected_ack_{error.reason.replace('-', '_')}")
        except FedgeError as error:
            log.warning("%s", error)
        message.acknowledge()

    def _announced(self) -> None:
        """Have the registry asked, which alone is believed about versions."""
        now = time.monotonic()
        if now - self._looked_at >= MIN_LOOK_INTERVAL_S:
            self._looked_at = now
            self._look_now()


def link_options(config: MqttConfig, topics: DeviceTopics) -> LinkOptions:
    """Return what a device's link is for."""
    filters = [topics.samples, topics.labels, topics.readings, topics.model]
    if config.outbox.acknowledge == "consumer":
        filters.append(topics.acks)
    return LinkOptions(
        client_id=config.broker.client_id or f"fedge-{topics.fleet}-{topics.device}",
        subscriptions=filters,
        status_topic=topics.status,
        max_incoming_bytes=2 * config.schema.max_payload_bytes + PACKET_SLACK_BYTES,
    )
