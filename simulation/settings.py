"""Configuration of ``fedge-simulate``."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedge.config import limited
from fedge.settings import PrivacyConfig
from server.settings import ServerConfig


@dataclass(frozen=True)
class SimulateConfig:
    """A federation in one process: the server's own configuration, and its clients.

    Attributes:
        server: as in ``fedge-server``; ``server.seed`` seeds everything, noise included, so
            the ε that is reported holds for the method and not for this run.
        privacy: what every simulated client insists on.
    """

    num_clients: int = limited(4, ge=1)
    server: ServerConfig = field(default_factory=ServerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
