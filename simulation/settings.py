"""Configuration of ``fedge-simulate``."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedge.config import limited
from fedge.settings import PrivacyConfig
from server.settings import ServerConfig


@dataclass(frozen=True)
class AttackConfig:
    """Clients that attack, to measure what a defence is worth.

    Attributes:
        name: one of `simulation.attacks.methods.attack_names`; ``none`` leaves all honest.
        fraction: share of all clients that is malicious, to the nearest whole number; who they
            are is drawn from the seed.
        num_classes: label-flip turns label y into ``num_classes - 1 - y``.
        factor: how many times as long as an honest update those of scale and gaussian are.
        ipm_epsilon: share of the mean update that inner-product manipulation sends backwards.
    """

    name: str = "none"
    fraction: float = limited(0.2, ge=0, lt=1)
    num_classes: int = limited(10, ge=2)
    factor: float = limited(20.0, gt=0)
    ipm_epsilon: float = limited(0.5, gt=0)


@dataclass(frozen=True)
class SimulateConfig:
    """A federation in one process: the server's own configuration, and its clients.

    Attributes:
        server: as in ``fedge-server``; ``server.seed`` seeds everything, noise included, so
            the ε that is reported holds for the method and not for this run.
        privacy: what every simulated client insists on, malicious ones too.
    """

    num_clients: int = limited(4, ge=1)
    server: ServerConfig = field(default_factory=ServerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
