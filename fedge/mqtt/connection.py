"""One connection to a broker, from its CONNECT to its end; it is never used again after that.

Whoever publishes or acknowledges holds the connection that it did so on. So an acknowledgement
that comes late, when the connection is gone, cannot be taken for that of another message, whose
number on the next connection may be the same.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from paho.mqtt.client import (
    Client,
    ConnectFlags,
    DisconnectFlags,
    MQTTMessage,
    MQTTv5,
)
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedge.errors import ConfigError, TransportError
from fedge.mqtt.granted import MAX_IN_FLIGHT, NO_LIMIT, Granted
from fedge.mqtt.messages import Incoming, read_message
from fedge.mqtt.settings import BrokerConfig
from fedge.settings import split_address
from fedge.tokens import read_token

CONNECT_TIMEOUT_S = 10.0
LOOP_S = 1.0
RESUBSCRIBE_S = 30.0
NO_MATCHING_SUBSCRIBERS = 0x10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What the broker says to a message of ours.

    Attributes:
        refusal: why it did not take it; empty if it did.
        heard: somebody subscribes to the topic, as far as the broker says.
    """

    refusal: str = ""
    heard: bool = True


class Listener(Protocol):
    """Who uses a link; called from the network's thread, so every method must return at once."""

    def on_up(self, connection: Connection) -> None:
        """Take note that a connection can be used."""

    def on_down(self) -> None:
        """Take note that the connection is gone."""

    def on_message(self, message: Incoming) -> None:
        """Take a message in; it stays the broker's until it is acknowledged."""

    def on_published(self, connection: Connection, number: int, verdict: Verdict) -> None:
        """Take note that the broker has what was published, or why it refused it."""


@dataclass(frozen=True)
class LinkOptions:
    """What a link is for.

    Attributes:
        client_id: names the session.
        subscriptions: filters, subscribed to on every connection.
        status_topic: gets a retained ``offline`` when we go or are lost; empty for none.
        max_incoming_bytes: of a packet to us.
        max_outgoing_bytes: of a packet from us.
    """

    client_id: str
    subscriptions: Sequence[str] = ()
    status_topic: str = ""
    max_incoming_bytes: int = 2**20
    max_outgoing_bytes: int = 2**16


class Connection:
    """One attempt to connect, and the connection if it succeeds.

    Args:
        config: the broker.
        options: what for.
        listener: told what happens.
        before_up: called just before ``listener.on_up``.
    """

    def __init__(
        self,
        config: BrokerConfig,
        options: LinkOptions,
        listener: Listener,
        before_up: Callable[[Connection], None],
    ) -> None:
        self._config = config
        self._options = options
        self._listener = listener
        self._before_up = before_up
        self._client = self._make_client()
        self._granted: Granted | None = None
        self._is_up = False
        self._ending = ""
        self._refused_filters: dict[str, str] = {}
        self._asked_filters: dict[int, Sequence[str]] = {}
        self._subscribe_again_at = 0.0

    @property
    def granted(self) -> Granted | None:
        """What the broker granted, once it has."""
        return self._granted

    @property
    def is_up(self) -> bool:
        """Whether it was accepted and subscriptions were answered."""
        return self._is_up

    @property
    def receive_maximum(self) -> int:
        """Messages that the broker takes unacknowledged."""
        return MAX_IN_FLIGHT if self._granted is None else self._granted.receive_maximum

    @property
    def maximum_packet_size(self) -> int:
        """Bytes of a packet that the broker takes."""
        return NO_LIMIT if self._granted is None else self._granted.maximum_packet_size

    @property
    def complaints(self) -> list[str]:
        """What the broker does not do for us as it should."""
        found = [f"the broker refuses {name}: {why}" for name, why in self._refused_filters.items()]
        if self._granted is not None:
            found += self._granted.complaints(self._config, self._options.max_outgoing_bytes)
        return found

    def serve(self) -> str:
        """Connect and stay connected; return why it ended.

        Raises:
            OSError, ConfigError, TransportError: there was no connection.
        """
        self._connect()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        while code == MQTTErrorCode.MQTT_ERR_SUCCESS:
            code = self._client.loop(LOOP_S)
            if not self._is_up and time.monotonic() > deadline:
                raise TransportError("it takes the connection and does not answer")
            self._subscribe_again()
        if self._granted is None:
            raise TransportError(self._ending or code.name)
        return self._ending or code.name

    def publish(self, topic: str, payload: bytes | str, *, retain: bool = False) -> int:
        """Send a message at QoS 1; return its number, by which the broker's answer names it."""
        return self._client.publish(topic, payload, qos=1, retain=retain).mid

    def close(self) -> None:
        """Ask for its end; the broker publishes our last will."""
        reason = ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message")
        with suppress(OSError):
            self._client.disconnect(reason)

    def _make_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._options.client_id,
            protocol=MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # whoever publishes keeps to what was granted
        client.max_queued_messages_set(0)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        # Where this is set, a thread that publishes leaves the writing to the network's thread.
        client.on_socket_register_write = _leave_to_loop
        return client

    def _connect(self) -> None:
        config, client = self._config, self._client
        if config.username:
            path = config.password_file
            password = None if path is None else read_token(path, "password_file")
            client.username_pw_set(config.username, password)
        if config.tls.ca is not None:
            client.tls_set_context(_tls_context(config))
        if self._options.status_topic:
            client.will_set(self._options.status_topic, "offline", qos=1, retain=True)
        host, port = split_address(config.address, "address")
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = config.session_expiry_s
        properties.ReceiveMaximum = config.receive_maximum
        properties.MaximumPacketSize = self._options.max_incoming_bytes
        # A clean start, even once, would make the broker forget what it queued for us.
        client.connect(host, port, config.keep_alive_s, clean_start=False, properties=properties)

    def _on_connect(
        self, _: Client, __: Any, flags: ConnectFlags, reason: ReasonCode, found: Properties | None
    ) -> None:
        if reason.is_failure:
            self._ending = f"it refused us: {reason}{_hint(str(reason))}"
            return
        self._granted = Granted.read(flags.session_present, found, self._config)
        if self._options.subscriptions:
            self._subscribe(self._options.subscriptions)
        else:
            self._go_up()

    def _subscribe(self, filters: Sequence[str]) -> None:
        options = SubscribeOptions(qos=1)
        _, number = self._client.subscribe([(name, options) for name in filters])
        if number is not None:
            self._asked_filters[number] = filters

    def _on_subscribe(
        self, _: Client, __: Any, number: int, reasons: list[ReasonCode], ___: Properties | None
    ) -> None:
        filters = self._asked_filters.pop(number, ())
        for name, reason in zip(filters, reasons, strict=False):
            self._refused_filters.pop(name, None)
            if reason.is_failure:
                self._refused_filters[name] = f"{reason}{_hint(str(reason))}"
            elif reason.value < 1:
                self._refused_filters[name] = "at QoS 1; it granted 0, which loses messages"
        self._subscribe_again_at = time.monotonic() + RESUBSCRIBE_S
        self._go_up()

    def _subscribe_again(self) -> None:
        if self._refused_filters and time.monotonic() >= self._subscribe_again_at:
            self._subscribe_again_at = time.monotonic() + RESUBSCRIBE_S
            self._subscribe(list(self._refused_filters))

    def _go_up(self) -> None:
        if not self._is_up:
            self._is_up = True
            self._before_up(self)
            self._listener.on_up(self)

    def _on_disconnect(
        self, _: Client, __: Any, flags: DisconnectFlags, reason: ReasonCode, ___: Any
    ) -> None:
        if self._ending:
            return
        answered = self._granted is not None
        self._ending = "the connection was lost" if answered else "it closed the connection at once"
        if flags.is_disconnect_packet_from_server:
            self._ending = f"it ended the connection: {reason}{_hint(str(reason))}"

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        acknowledge = _acknowledger(client, message.mid, message.qos)
        try:
            incoming = read_message(message, acknowledge)
        except UnicodeDecodeError:
            acknowledge()
            return
        self._listener.on_message(incoming)

    def _on_publish(
        self, _: Client, __: Any, number: int, reason: ReasonCode, ___: Properties | None
    ) -> None:
        refusal = f"{reason}{_hint(str(reason))}" if reason.is_failure else ""
        heard = reason.value != NO_MATCHING_SUBSCRIBERS
        self._listener.on_published(self, number, Verdict(refusal, heard))


def _acknowledger(client: Client, number: int, qos: int) -> Callable[[], None]:
    def acknowledge() -> None:
        with suppress(OSError):  # the connection ends just now
            client.ack(number, qos)

    return acknowledge


def _leave_to_loop(*_: object) -> None:
    """Do nothing: the loop is woken through its own pair of sockets."""


def _tls_context(config: BrokerConfig) -> ssl.SSLContext:
    tls = config.tls
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.cert is not None:
            context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be used: {error}", key="tls") from error
    return context


def _no_password() -> str:
    """Refuse an encrypted key, for which OpenSSL would otherwise ask on the terminal."""
    raise ValueError("the key is encrypted; store it without a passphrase, readable by us alone")


def _hint(reason: str) -> str:
    hints = {
        "Bad user name or password": "check username and password_file",
        "Not authorized": "check username, password_file and the broker's ACL",
        "Session taken over": "another client connects as us; give each its own client_id",
        "Retain not supported": "set retain_available true in the broker",
        "Client identifier not valid": "choose another client_id",
        "Server busy": "trying again",
        "Quota exceeded": "the broker allows no more of this",
        "Packet too large": "raise max_packet_size in the broker",
    }
    hint = hints.get(reason)
    return f" ({hint})" if hint else ""
