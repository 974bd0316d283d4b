"""A mean in which no client counts for more than the round's own median allows.

Shared by `aggregation.bounded` and `aggregation.centred`: both bound each update's distance to
a centre and each update's weight; they differ in the centre.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from aggregation.contracts import Memory
from aggregation.mean import RunningSum
from aggregation.norms import SHORTEST_NORM
from fedge.params import Vector

WEIGHT_FACTOR = 2.0
"""A client weighs at most this many median weights: more examples than all others count, but a
lie about them gains little."""


@dataclass(frozen=True)
class Bounds:
    """What one update may count for.

    Attributes:
        distance: largest distance to the centre; 0 where nothing is known yet, and then every
            update is scaled to the round's median distance.
        weight: largest weight; 0 where nothing is known yet, and then all weigh the same.
    """

    distance: float
    weight: float

    @staticmethod
    def of(memory: Memory, norm_bound: float, factor: float) -> Bounds:
        """Return the bounds that the last round's medians give; a fixed norm bound overrides."""
        distance = norm_bound or factor * _number(memory, "median_distance")
        return Bounds(distance, WEIGHT_FACTOR * _number(memory, "median_weight"))


@dataclass
class ClippedSum:
    """A partial aggregate of bounded updates; two of the same round merge.

    Attributes:
        distances, weights: of every update, unbounded: their medians bound the next round.
    """

    bounds: Bounds
    sum: RunningSum
    distances: array[float] = field(default_factory=lambda: array("d"))
    weights: array[float] = field(default_factory=lambda: array("d"))

    def add(
        self, offset: Vector, distance: float, num_examples: float, discount: float
    ) -> ClippedSum:
        """Add one update in place, given as its offset from the centre and that one's norm."""
        self.distances.append(distance)
        self.weights.append(num_examples)
        weight = min(num_examples, self.bounds.weight) if self.bounds.weight else 1.0
        self.sum.add(offset, weight * discount, scale=self._scale(distance))
        return self

    @property
    def num_updates(self) -> int:
        """How many were added."""
        return self.sum.num_updates

    def merge(self, other: ClippedSum) -> ClippedSum:
        """Add the other partial aggregate in place."""
        self.sum.merge(other.sum)
        self.distances.extend(other.distances)
        self.weights.extend(other.weights)
        return self

    def finish(self) -> tuple[Vector, Memory]:
        """Return the mean offset from the centre and the medians for the next round.

        Raises:
            AggregationError: there is nothing to aggregate.
        """
        mean, medians = self.sum.mean(), _medians(self.distances, self.weights)
        if not self.bounds.distance:
            mean *= np.float32(medians["median_distance"])
        return mean, medians

    def with_medians_of(self, other: ClippedSum) -> Memory:
        """Return the medians of both sums' updates."""
        return _medians(self.distances + other.distances, self.weights + other.weights)

    def _scale(self, distance: float) -> float:
        if distance < SHORTEST_NORM:
            return 1.0
        if not self.bounds.distance:
            return 1.0 / distance
        return min(1.0, self.bounds.distance / distance)


def _medians(distances: array[float], weights: array[float]) -> Memory:
    return {
        "median_distance": float(np.median(np.frombuffer(distances))),
        "median_weight": float(np.median(np.frombuffer(weights))),
    }


def _number(memory: Memory, name: str) -> float:
    value = memory.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
