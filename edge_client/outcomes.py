"""What became of a version on this device, for the server that decides whether others get it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Fate(Enum):
    """What a device did with a version."""

    SERVED = "served"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True)
class Outcome:
    """One version's fate.

    Attributes:
        version: id, the SHA-256 (hex) of its signed manifest.
        reason: why it is not served; empty if it is.
        metric, metric_before: local means of it and of the version before; None where they are
            not known or stay on the device.
    """

    version: str
    fate: Fate
    reason: str = ""
    metric: float | None = None
    metric_before: float | None = None
    num_labelled: int = 0
