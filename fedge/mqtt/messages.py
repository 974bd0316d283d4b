"""Messages as they come from a broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from paho.mqtt.client import MQTTMessage


def _nothing() -> None:
    """Do nothing: QoS 0 is not acknowledged."""


@dataclass(frozen=True)
class Incoming:
    """One message.

    Attributes:
        properties: MQTT v5 user properties; of several with one name the last.
        content_type: what the payload is, as its publisher says; or empty.
        acknowledge: tells the broker that it need not send the message again; harmless once the
            connection that brought it is gone.
    """

    topic: str
    payload: bytes
    properties: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    acknowledge: Callable[[], None] = _nothing


def read_message(message: MQTTMessage, acknowledge: Callable[[], None]) -> Incoming:
    """Return paho's message as ours.

    Raises:
        UnicodeDecodeError: the topic is not valid text.
    """
    found = message.properties
    return Incoming(
        topic=message.topic,
        payload=bytes(message.payload),
        properties=dict(getattr(found, "UserProperty", ())),
        content_type=str(getattr(found, "ContentType", "")),
        acknowledge=acknowledge if message.qos else _nothing,
    )
