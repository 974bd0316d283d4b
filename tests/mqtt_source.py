"""A source of samples that knows MQTT and nothing of fedge: plain paho, one session, QoS 1."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class Source:
    """Publishes, and listens to what it is told to; reconnects by paho's own loop.

    Args:
        port: of the broker on this machine.
        filters: what it listens to.
    """

    def __init__(self, port: int, *filters: str, name: str = "source") -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        self._filters = filters
        self._changed = threading.Condition()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTv5)
        self.client.max_inflight_messages_set(500)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", port, 30, clean_start=False, properties=properties)
        self.client.loop_start()

    def send(
        self,
        topic: str,
        payload: Any,
        properties: dict[str, str] | None = None,
        *,
        content_type: str = "",
        qos: int = 1,
        retain: bool = False,
    ) -> Any:
        """Publish bytes as they are, and anything else as JSON."""
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if properties:
            found.UserProperty = list(properties.items())
        if content_type:
            found.ContentType = content_type
        return self.client.publish(topic, content, qos=qos, retain=retain, properties=found)

    def wait(self, condition: Callable[[], bool], within_s: float = 60.0) -> None:
        """Wait until something holds of what was heard."""
        with self._changed:
            assert self._changed.wait_for(condition, within_s), f"heard {self.heard[-5:]}"

    def payloads(self, ending: str) -> list[bytes]:
        """Return what came on topics that end so."""
        return [payload for topic, payload, _ in list(self.heard) if topic.endswith(ending)]

    def close(self) -> None:
        """End."""
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_connect(self, client: Client, *_: object) -> None:
        for name in self._filters:
            client.subscribe(name, qos=1)

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        with self._changed:
            self.heard.append((message.topic, bytes(message.payload), message.retain))
            self._changed.notify_all()
