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
        self.note(distance, num_examples)
        weight = min(num_examples, self.bounds.weight) if self.bounds.weight else 1.0
        self.sum.add(offset, weight * discount, scale=self._scale(distance))
        return self

    def note(self, distance: float, num_examples: float) -> None:
        """Let an update count in the medians; alone, without adding it up."""
        self.distances.append(distance)
        self.weights.append(num_examples)

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
        mean, medians = self.sum.mean(), self.medians()
        if not self.bounds.distance:
            mean *= np.float32(medians["median_distance"])
        return mean, medians

    def medians(self) -> Memory:
        """Return what bounds the next round."""
        distance, weight = (
            float(np.median(np.frombuffer(values))) for values in (self.distances, self.weights)
        )
        return {"median_distance": distance, "median_weight": weight}

    def _scale(self, distance: float) -> float:
        if distance == 0:
            return 1.0
        if not self.bounds.distance:
            return 1.0 / distance
        return min(1.0, self.bounds.distance / distance)


def _number(memory: Memory, name: str) -> float:
    value = memory.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
