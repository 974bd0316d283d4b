"""Every partitioner under its name; import them from here."""

from __future__ import annotations

from fedge.errors import ConfigError
from simulation.partition import by_label, orders, sampled, shift
from simulation.partition.division import PARTITIONERS, Partitioner
from simulation.partition.flower import FlowerPartitioner
from simulation.partition.settings import FLOWER_PREFIX, DataConfig

__all__ = ["by_label", "make_partitioner", "orders", "partitioner_names", "sampled", "shift"]

_DEFAULT = "iid"


def partitioner_names() -> list[str]:
    """Return the names that ``data.partitioner`` may have, besides ``flwr:ClassName``."""
    return list(PARTITIONERS)


def make_partitioner(config: DataConfig) -> Partitioner:
    """Return the configured partitioner.

    Raises:
        ConfigError: there is none of that name.
    """
    name = config.partitioner or _DEFAULT
    if name.startswith(FLOWER_PREFIX):
        return FlowerPartitioner(config)
    if name not in PARTITIONERS:
        raise ConfigError(
            f"must be one of {', '.join(partitioner_names())} or flwr:ClassName, got {name!r}",
            key="data.partitioner",
        )
    return PARTITIONERS[name](config)
