"""Announces the newest version to a fleet over MQTT, retained.

It only makes devices ask the registry sooner: what they believe about a version is its signature.
"""

from __future__ import annotations

import json
import threading

from fedge.mqtt.connection import Connection, LinkOptions, Verdict
from fedge.mqtt.link import Link
from fedge.mqtt.messages import Incoming
from fedge.mqtt.topics import model_topic
from server.mqtt.settings import AnnounceConfig
from server.publisher import PublishedVersion


class Announcer:
    """Keeps the retained message about the newest version up to date."""

    def __init__(self, config: AnnounceConfig, run_name: str) -> None:
        self._topic = model_topic(config.fleet)
        client_id = config.broker.client_id or f"fedge-server-{config.fleet}-{run_name}"
        self._link = Link(config.broker, LinkOptions(client_id), self)
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._payload = ""

    @property
    def problem(self) -> str:
        """Why versions are not announced; or empty."""
        return self._link.problem

    def start(self, latest: PublishedVersion | None) -> None:
        """Begin, with the version that is served now."""
        if latest is not None:
            self.announce(latest)
        self._link.start()

    def stop(self) -> None:
        """End the link; the message stays at the broker."""
        self._link.stop()

    def announce(self, version: PublishedVersion) -> None:
        """Announce a version, now or as soon as there is a connection."""
        manifest = version.manifest
        payload = {
            "run_name": manifest.run_name,
            "round": manifest.round,
            "digest": manifest.weights.digest,
        }
        with self._lock:
            self._payload = json.dumps(payload)
            self._send()

    def on_up(self, connection: Connection) -> None:
        """Announce again: a broker that was killed may have lost it."""
        with self._lock:
            self._connection = connection
            self._send()

    def on_down(self) -> None:
        """Wait for the next connection."""
        with self._lock:
            self._connection = None

    def on_message(self, message: Incoming) -> None:
        """Acknowledge what an earlier session may have left."""
        message.acknowledge()

    def on_published(self, connection: Connection, number: int, verdict: Verdict) -> None:
        """Do nothing: it is sent again on the next connection."""

    def _send(self) -> None:
        if self._connection is not None and self._payload:
            self._connection.publish(self._topic, self._payload, retain=True)
