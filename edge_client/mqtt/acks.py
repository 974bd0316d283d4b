"""What the consumer of predictions says it has."""

from __future__ import annotations

from edge_client.mqtt.json_values import read_object
from fedge.errors import PayloadRejected
from fedge.mqtt.messages import Incoming

MAX_ACK_BYTES = 64 * 1024
MAX_SEQUENCE = 2**63 - 1


def read_acks(message: Incoming) -> list[int]:
    """Return the numbers of ``{"sequences": [...]}``.

    Raises:
        PayloadRejected: it is something else.
    """
    if len(message.payload) > MAX_ACK_BYTES:
        raise PayloadRejected("size", f"has {len(message.payload)} bytes")
    sequences = read_object(message.payload).get("sequences")
    if not isinstance(sequences, list) or not set(map(type, sequences)) <= {int}:
        raise PayloadRejected("type", "must have sequences, a list of whole numbers")
    if any(not 0 <= number <= MAX_SEQUENCE for number in sequences):
        raise PayloadRejected("sequence", "has a sequence out of range")
    return sequences
