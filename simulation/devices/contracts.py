"""What every model of availability does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fedge.naming import Registry
from simulation.devices.hashing import ClientDraws, Floats, Ids
from simulation.devices.settings import AvailabilityConfig


class Availability(Protocol):
    """When devices are there, as a function of the client and the time alone."""

    def until(self, clients: Ids, at_s: float) -> Floats:
        """Return when the window ends that each client is in; ``at_s`` where it is in none."""
        ...

    def next_start(self, clients: Ids, at_s: float) -> Floats:
        """Return when each client's next window begins, after ``at_s``; infinity for never."""
        ...


AVAILABILITIES: Registry[Callable[[AvailabilityConfig, ClientDraws], Availability]] = Registry(
    "availability of devices"
)
