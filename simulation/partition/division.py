"""What a partitioner is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedge.naming import Registry
from fedge.task import Examples
from simulation.partition.pool import Pool
from simulation.partition.settings import DataConfig

Index = npt.NDArray[np.signedinteger[Any]]
"""Positions in a pool."""


class Parts(Protocol):
    """Which examples of a pool each client has; computed when asked, the same every time."""

    def num_examples(self, client: int) -> int:
        """Return how many examples a client has."""
        ...

    def indices(self, client: int) -> Index:
        """Return the positions of a client's examples, ``[N]``."""
        ...


def as_they_are(client: int, examples: Examples) -> Examples:
    """Return a client's examples unchanged."""
    del client
    return examples


@dataclass(frozen=True)
class Division:
    """A pool divided among clients.

    Attributes:
        parts: which examples each client has.
        view: what a client sees of them; returns new examples and leaves the pool's alone.
    """

    parts: Parts
    view: Callable[[int, Examples], Examples] = as_they_are


class Partitioner(Protocol):
    """Divides a pool; the seed alone decides what is drawn at random."""

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return who has what.

        Raises:
            ConfigError: the pool cannot be divided so; names the key and what to do.
        """
        ...


PARTITIONERS: Registry[Callable[[DataConfig], Partitioner]] = Registry("partitioner")
