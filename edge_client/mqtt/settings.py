"""Configuration of MQTT on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedge.config import limited
from fedge.errors import ConfigError
from fedge.mqtt.settings import BrokerConfig
from fedge.mqtt.topics import check_level

FULL_POLICY_NAMES = ("oldest-first", "refuse")
"""Names that `edge_client.mqtt.outbox_policies` registers."""

MAX_DIMENSIONS = 8
MAX_VALUES = 2**24


@dataclass(frozen=True)
class SchemaConfig:
    """What a sample and a label look like; everything else is dropped and counted.

    Attributes:
        format: how a payload is read whose content type does not say; ``packed`` is the raw
            little-endian values, with source and sequence in user properties.
        shape: of one sample, without batch dimension.
        dtype: of its values, as the model takes them.
        label_shape: of one label; empty for a single number.
        max_payload_bytes: larger payloads are dropped before they are read.
    """

    format: str = limited("json", choices=("json", "packed"))
    shape: tuple[int, ...] = ()
    dtype: str = limited("float32", choices=("float32", "int32"))
    label_shape: tuple[int, ...] = ()
    label_dtype: str = limited("int64", choices=("int64", "float32"))
    max_payload_bytes: int = limited(256 * 1024, ge=64, le=64 * 2**20)

    def __post_init__(self) -> None:
        """Refuse shapes that no payload could have."""
        for key in ("shape", "label_shape"):
            shape = getattr(self, key)
            if len(shape) > MAX_DIMENSIONS or any(size < 1 for size in shape):
                raise ConfigError(
                    f"must have at most {MAX_DIMENSIONS} sizes of 1 or more, got {list(shape)}",
                    key=key,
                )
            if math.prod(shape) > MAX_VALUES:
                raise ConfigError(
                    f"{list(shape)} is more than {MAX_VALUES} values in one sample", key=key
                )
        if 4 * math.prod(self.shape) > self.max_payload_bytes:
            raise ConfigError(
                f"a sample of {list(self.shape)} does not fit into {self.max_payload_bytes} bytes",
                key="max_payload_bytes",
            )


@dataclass(frozen=True)
class OutboxConfig:
    """Predictions on their way to the broker.

    Attributes:
        max_bytes: bound of what waits.
        when_full: ``oldest-first`` drops the oldest predictions, ``refuse`` the new ones.
        acknowledge: who must have a prediction before it is deleted here: ``broker``, or the
            ``consumer`` itself, where nothing may be lost.
        in_flight: predictions sent at most before one of them is acknowledged.
        resend_after_s: an unacknowledged prediction is sent again after so long, then after
            twice that, and so on up to an hour; and at once on a new connection.
    """

    max_bytes: int = limited(64 * 2**20, ge=4096)
    when_full: str = limited("oldest-first", choices=FULL_POLICY_NAMES)
    acknowledge: str = limited("broker", choices=("broker", "consumer"))
    in_flight: int = limited(256, ge=1, le=65535)
    resend_after_s: float = limited(30.0, gt=0)


@dataclass(frozen=True)
class MqttConfig:
    """MQTT on this device; off while ``broker.address`` is empty.

    Attributes:
        fleet: second level of every topic.
        device: third level; empty takes the device's name, else the name of its folder.
    """

    fleet: str = "fleet"
    device: str = ""
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    schema: SchemaConfig = field(default_factory=SchemaConfig)
    outbox: OutboxConfig = field(default_factory=OutboxConfig)

    def __post_init__(self) -> None:
        """Refuse names that cannot be in a topic, and samples that nothing is known of."""
        check_level(self.fleet, "fleet")
        if self.device:
            check_level(self.device, "device")
        if self.broker.address and not self.schema.shape:
            raise ConfigError("declare the shape of one sample, such as [64]", key="schema.shape")
