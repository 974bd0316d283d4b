"""What an attack may be: examples that are poisoned, or an update that is forged.

Every malicious client trains as an honest one would before it forges; its forgery is then encoded
and checked like any other update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedge.naming import Registry
from fedge.params import Vector
from fedge.task import Examples
from simulation.settings import AttackConfig


@dataclass(frozen=True)
class Scene:
    """What a malicious client knows when it forges.

    Attributes:
        honest: delta that it would have sent, ``[D]``.
        num_examples: example weight that it would have sent.
        colluding: honest deltas of every malicious client asked in this round, its own among
            them, ``[M, D]``.
        num_asked: clients asked in this round, N; M of them are malicious.
        rng: its own stream for this round.
    """

    honest: Vector
    num_examples: float
    colluding: npt.NDArray[np.float32]
    num_asked: int
    rng: np.random.Generator


@dataclass(frozen=True)
class Forgery:
    """What a malicious client sends in place of its honest update."""

    delta: Vector
    num_examples: float


class UpdateAttack(Protocol):
    """Forges an update."""

    def forge(self, scene: Scene) -> Forgery:
        """Return what is sent."""
        ...


class DataAttack(Protocol):
    """Poisons the examples of a client that is otherwise honest."""

    def poison(self, examples: Examples) -> Examples:
        """Return what is trained on."""
        ...


UPDATE_ATTACKS: Registry[Callable[[AttackConfig], UpdateAttack]] = Registry("update attack")
DATA_ATTACKS: Registry[Callable[[AttackConfig], DataAttack]] = Registry("data attack")
