"""What comes of asking devices: when each answers, or how it fails, and what travels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from simulation.devices.hashing import Floats, Ids

Codes = npt.NDArray[np.int8]


class Outcome(IntEnum):
    """How a device's round ends; `label` is the name in figures."""

    OK = 0
    DROPOUT = 1
    CRASH = 2
    MEMORY = 3
    UNAVAILABLE = 4

    @property
    def label(self) -> str:
        """Return the name in figures: ``drop-out``."""
        return "drop-out" if self is Outcome.DROPOUT else self.name.lower()


@dataclass(frozen=True, eq=False)
class Schedule:
    """A cohort's round in virtual time, one entry a client in the order asked.

    Attributes:
        finish_s: when its update arrives, absolute; infinity where it never does.
        stops_s: when it stops working for the round, one way or the other. A device that dropped
            out can be asked again from then on, one that crashed in the next round only.
        outcome: codes of `Outcome`.
        bytes_down, bytes_up: what travelled until it stopped.
    """

    clients: Ids
    finish_s: Floats
    stops_s: Floats
    outcome: Codes
    bytes_down: Floats
    bytes_up: Floats

    def __len__(self) -> int:
        """Return how many were asked."""
        return len(self.clients)

    def first(self, num: int) -> Schedule:
        """Return what comes of asking only so many of them; nobody slows another down."""
        return Schedule(
            clients=self.clients[:num],
            finish_s=self.finish_s[:num],
            stops_s=self.stops_s[:num],
            outcome=self.outcome[:num],
            bytes_down=self.bytes_down[:num],
            bytes_up=self.bytes_up[:num],
        )


@dataclass(frozen=True, eq=False)
class Phases:
    """How long each part of a device's round takes if nothing goes wrong, in seconds."""

    latency_s: Floats
    download_s: Floats
    compute_s: Floats
    upload_s: Floats

    @property
    def total_s(self) -> Floats:
        """From being asked to the update's arrival; there is one latency each way."""
        return 2 * self.latency_s + self.download_s + self.compute_s + self.upload_s

    def downloaded(self, elapsed_s: Floats) -> Floats:
        """Return which fraction of the model has come after so long."""
        return _progress(elapsed_s - self.latency_s, self.download_s)

    def uploaded(self, elapsed_s: Floats) -> Floats:
        """Return which fraction of the update has gone after so long."""
        before = self.latency_s + self.download_s + self.compute_s + self.latency_s
        return _progress(elapsed_s - before, self.upload_s)


def _progress(elapsed_s: Floats, length_s: Floats) -> Floats:
    """Return the share of a phase that has passed; one of no length passes after its moment."""
    passed = (elapsed_s > 0).astype(np.float64)
    return np.clip(np.divide(elapsed_s, length_s, out=passed, where=length_s > 0), 0.0, 1.0)
