"""Configuration of MQTT in the cloud."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedge.mqtt.settings import BrokerConfig
from fedge.mqtt.topics import check_level


@dataclass(frozen=True)
class AnnounceConfig:
    """Where new versions are announced; off while ``broker.address`` is empty."""

    fleet: str = "fleet"
    broker: BrokerConfig = field(default_factory=BrokerConfig)

    def __post_init__(self) -> None:
        """Refuse a name that cannot be in a topic."""
        check_level(self.fleet, "fleet")
