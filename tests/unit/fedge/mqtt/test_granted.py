from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedge.mqtt.granted import Granted
from fedge.mqtt.settings import BrokerConfig

ASKED = BrokerConfig(session_expiry_s=3600, keep_alive_s=30)


def complaints(**granted: Any) -> list[str]:
    properties = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    for name, value in granted.items():
        setattr(properties, name, value)
    return Granted.read(True, properties, ASKED).complaints(ASKED, packet_bytes=65536)


def test_what_a_broker_leaves_out_is_as_the_standard_says() -> None:
    granted = Granted.read(False, None, ASKED)
    assert granted == Granted(False, 3600, 2, 2**28, 65535, True, 30)
    assert granted.complaints(ASKED, 65536) == []


@pytest.mark.parametrize(
    ("granted", "expected"),
    [
        ({"SessionExpiryInterval": 60}, "persistent_client_expiration"),
        ({"SessionExpiryInterval": 0}, "session for 0 s only"),
        ({"MaximumQoS": 0}, "QoS 0 only"),
        ({"MaximumPacketSize": 1000}, "max_packet_size"),
        ({"ReceiveMaximum": 1}, "max_inflight_messages"),
        ({"RetainAvailable": 0}, "retain_available true"),
        ({"ServerKeepAlive": 600}, "keep-alive of 600 s"),
    ],
)
def test_what_falls_short_is_said(granted: dict[str, int], expected: str) -> None:
    [complaint] = complaints(**granted)
    assert expected in complaint


def test_what_suffices_is_not_complained_about() -> None:
    enough = {"MaximumPacketSize": 65536, "ReceiveMaximum": 20, "ServerKeepAlive": 30}
    assert complaints(SessionExpiryInterval=3600, MaximumQoS=1, **enough) == []
