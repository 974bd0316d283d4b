"""Every attack under its name; import them from here."""

from __future__ import annotations

from dataclasses import dataclass

from fedge.errors import ConfigError
from simulation.attacks import colluding, labels, lone
from simulation.attacks.contracts import DATA_ATTACKS, UPDATE_ATTACKS, DataAttack, UpdateAttack
from simulation.settings import AttackConfig

__all__ = [
    "Attacks",
    "attack_names",
    "check_attack",
    "colluding",
    "labels",
    "lone",
    "make_attacks",
]

NO_ATTACK = "none"


def attack_names() -> list[str]:
    """Return the names that ``attack.name`` may have, besides ``none``."""
    return sorted([*DATA_ATTACKS, *UPDATE_ATTACKS])


def check_attack(config: AttackConfig) -> None:
    """Refuse an attack that nobody knows.

    Raises:
        ConfigError: names the dotted key, and the names there are.
    """
    known = [NO_ATTACK, *attack_names()]
    if config.name not in known:
        raise ConfigError(
            f"must be one of {', '.join(known)}, got {config.name!r}", key="attack.name"
        )


@dataclass(frozen=True)
class Attacks:
    """What malicious clients do: poison their data, forge their updates, or (none) neither."""

    data: DataAttack | None = None
    update: UpdateAttack | None = None


def make_attacks(config: AttackConfig) -> Attacks:
    """Return the configured attack.

    Raises:
        ConfigError: there is no attack of that name.
    """
    check_attack(config)
    if config.name == NO_ATTACK:
        return Attacks()
    if config.name in DATA_ATTACKS:
        return Attacks(data=DATA_ATTACKS[config.name](config))
    return Attacks(update=UPDATE_ATTACKS[config.name](config))
