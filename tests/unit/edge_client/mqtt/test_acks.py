from typing import Any

import pytest

from edge_client.mqtt.acks import read_acks
from fedge.errors import PayloadRejected
from fedge.mqtt.messages import Incoming


def test_numbers_are_read() -> None:
    assert read_acks(Incoming("t", b'{"sequences": [1, 20, 3]}')) == [1, 20, 3]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"x" * 70_000, "size"),
        (b"\xff", "encoding"),
        (b"[1]", "type"),
        (b"{}", "type"),
        (b'{"sequences": 5}', "type"),
        (b'{"sequences": [1, "2"]}', "type"),
        (b'{"sequences": [true]}', "type"),
        (b'{"sequences": [1.0]}', "type"),
        (b'{"sequences": [-1]}', "sequence"),
        (b'{"sequences": [99999999999999999999]}', "sequence"),
        (b'{"sequences": ' + b"[" * 5000, "nesting"),
    ],
)
def test_anything_else_is_refused(payload: Any, reason: str) -> None:
    with pytest.raises(PayloadRejected) as caught:
        read_acks(Incoming("t", payload))
    assert caught.value.reason == reason
