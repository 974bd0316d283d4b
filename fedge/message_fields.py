"""Reading single fields out of Flower records that somebody else wrote."""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedge.errors import ProtocolMismatch, TransportError
from fedge.protocol import PROTOCOL_VERSION

# Record names; "arrays", "config" and "metrics" are those of Flower's own strategies.
ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
CONTROL = "control"
DOWNLINK = "downlink"
UPDATE = "update"
REFUSAL = "refusal"
NUM_EXAMPLES = "num-examples"


def record_named(content: RecordDict, name: str) -> ConfigRecord:
    """Return a ConfigRecord that a fedge server always sends.

    Raises:
        TransportError: it is not there.
    """
    if name not in content.config_records:
        raise TransportError(f"the message has no record {name!r}; it is not from a fedge server")
    return content.config_records[name]


def check_protocol(record: ConfigRecord) -> None:
    """Refuse a record of another protocol version.

    Raises:
        ProtocolMismatch: names both versions.
    """
    version = record.get("protocol")
    if version != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"the other side speaks protocol {version!r:.40}, this side {PROTOCOL_VERSION}; "
            "upgrade the older of the two"
        )


def get_field(record: ConfigRecord, name: str, kind: type[Any]) -> Any:
    """Return a field of the given type; a whole number will do for a float.

    Raises:
        TransportError: it is missing or of another type.
    """
    value = record.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = type(value).__name__ if isinstance(value, bytes | list) else f"{value!r:.80}"
        raise TransportError(f"field {name!r} should be {kind.__name__}, got {found}")
    return value


def get_metric(content: RecordDict, name: str) -> float | None:
    """Return a metric of that name from whichever MetricRecord has it."""
    for record in content.metric_records.values():
        value = record.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None
