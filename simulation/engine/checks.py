"""What of the section ``engine`` is refused before anything starts."""

from __future__ import annotations

import torch

# Backends register themselves when the trainer is imported.
import fedge.training.cohort  # noqa: F401
from fedge.errors import ConfigError
from fedge.training.cohort_contracts import BACKENDS
from simulation.settings import EngineConfig

_AUTO = "auto"


def check_engine(engine: EngineConfig) -> None:
    """Refuse a backend that nobody knows and a device that is not there.

    Raises:
        ConfigError: names the dotted key.
    """
    known = sorted([_AUTO, *BACKENDS])
    if engine.backend not in known:
        raise ConfigError(
            f"must be one of {', '.join(known)}, got {engine.backend!r}", key="engine.backend"
        )
    try:
        kind = torch.device(engine.device).type
    except RuntimeError as error:
        raise ConfigError(
            f"must be a device of torch such as cpu or cuda, got {engine.device!r}",
            key="engine.device",
        ) from error
    # The actors of a cluster have devices of their own.
    if kind == "cuda" and not engine.ray and not torch.cuda.is_available():
        raise ConfigError(
            f"is {engine.device!r}, and torch finds no CUDA device here: choose cpu, or install a "
            "torch that is built for CUDA",
            key="engine.device",
        )
