"""The course of the last rounds, and the updates that go against it."""

from __future__ import annotations

import math

import numpy as np
import torch

from aggregation.contracts import Memory
from aggregation.norms import SHORTEST_NORM, norm_of, tensor_of
from fedge.params import Layout, Vector

COURSE = "course"
DECAY = 0.9
"""What is left of a round's part in the course after another round."""
NUM_SIGMAS = 3.0
_ROW = 1 << 16


class Course:
    """Where the aggregates of the last rounds led to, on average.

    Honest updates of one round differ, but hardly any points away from where the rounds have been
    going; an inverted one does.

    Args:
        vector: decayed sum of the last aggregates, ``[layout.size]``; None where there is none.
    """

    def __init__(self, vector: Vector | None) -> None:
        self.vector = vector
        self._norm = 0.0 if vector is None else norm_of(vector)

    @staticmethod
    def of(memory: Memory, layout: Layout) -> Course:
        """Return the course that the last round remembered; an empty one if it does not fit."""
        vector = memory.get(COURSE)
        fits = isinstance(vector, np.ndarray) and vector.shape == (layout.size,)
        return Course(vector if fits else None)

    def is_opposed_by(self, delta: Vector, norm: float) -> bool:
        """Tell whether an update goes back more than chance explains.

        The cosine of a random direction has a standard deviation of 1/√size; an update that is
        mostly noise, as under differential privacy, must not be counted out for that.
        """
        if self.vector is None or min(self._norm, norm) < SHORTEST_NORM:
            return False
        cosine = _dot(delta, self.vector) / (norm * self._norm)
        return cosine < -NUM_SIGMAS / math.sqrt(delta.size)

    def after(self, aggregate: Vector) -> Vector:
        """Return the course with one more round in it, a new vector."""
        if self.vector is None:
            return aggregate.copy()
        vector: Vector = self.vector * np.float32(DECAY)
        vector += aggregate
        return vector


def _dot(left: Vector, right: Vector) -> float:
    # Rows short enough for a core's cache, long enough that calling does not cost.
    a, b = torch.split(tensor_of(left), _ROW), torch.split(tensor_of(right), _ROW)
    return float(sum(torch.dot(x, y).item() for x, y in zip(a, b, strict=True)))
