"""What a broker grants when it accepts a connection, and what of it falls short of our needs."""

from __future__ import annotations

from dataclasses import dataclass

from paho.mqtt.properties import Properties

from fedge.mqtt.settings import BrokerConfig

NO_LIMIT = 2**28  # the largest packet of MQTT
MAX_IN_FLIGHT = 65535


@dataclass(frozen=True)
class Granted:
    """What the broker said in CONNACK; what it left out has the value that MQTT v5 gives it.

    Attributes:
        session_present: it remembered us.
        receive_maximum: messages of ours that may be unacknowledged.
        maximum_packet_size: bytes of a packet that it takes.
    """

    session_present: bool
    session_expiry_s: int
    maximum_qos: int
    maximum_packet_size: int
    receive_maximum: int
    retain_available: bool
    keep_alive_s: int

    @classmethod
    def read(
        cls, session_present: bool, properties: Properties | None, asked: BrokerConfig
    ) -> Granted:
        """Read a CONNACK's properties."""
        found = {} if properties is None else vars(properties)
        return cls(
            session_present=session_present,
            session_expiry_s=found.get("SessionExpiryInterval", asked.session_expiry_s),
            maximum_qos=found.get("MaximumQoS", 2),
            maximum_packet_size=found.get("MaximumPacketSize", NO_LIMIT),
            receive_maximum=found.get("ReceiveMaximum", MAX_IN_FLIGHT),
            retain_available=bool(found.get("RetainAvailable", 1)),
            keep_alive_s=found.get("ServerKeepAlive", asked.keep_alive_s),
        )

    def complaints(self, asked: BrokerConfig, packet_bytes: int) -> list[str]:
        """Return what a person should change in the broker's configuration.

        Args:
            asked: what we asked for.
            packet_bytes: the largest packet that we may have to send.
        """
        found = []
        if self.session_expiry_s < asked.session_expiry_s:
            found.append(
                f"the broker keeps our session for {self.session_expiry_s} s only, we asked for "
                f"{asked.session_expiry_s}: raise its limit (mosquitto: "
                "persistent_client_expiration), or what comes while we are away longer is lost"
            )
        if self.maximum_qos < 1:
            found.append("the broker takes QoS 0 only, which loses messages: allow QoS 1")
        if self.maximum_packet_size < packet_bytes:
            found.append(
                f"the broker takes packets up to {self.maximum_packet_size} bytes, we may send "
                f"{packet_bytes}: raise its limit (mosquitto: max_packet_size)"
            )
        if self.receive_maximum < 2:
            found.append(
                "the broker takes one message at a time: raise its receive maximum (mosquitto: "
                "max_inflight_messages)"
            )
        if not self.retain_available:
            found.append("the broker retains nothing: allow it (mosquitto: retain_available true)")
        if self.keep_alive_s == 0 or self.keep_alive_s > asked.keep_alive_s:
            found.append(
                f"the broker sets a keep-alive of {self.keep_alive_s} s, we asked for "
                f"{asked.keep_alive_s}: a dead link is found later"
            )
        return found
