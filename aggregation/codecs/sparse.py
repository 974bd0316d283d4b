"""Some coordinates travel, and their values by any coder."""

from __future__ import annotations

import numpy as np

from aggregation.codecs.coders import Indices, Selection, ValueCoder
from fedge.params import Vector


class SparseCoder:
    """A selection and a coder of the selected values. Payload: the choice, then the values."""

    def __init__(self, selection: Selection, coder: ValueCoder) -> None:
        self._selection = selection
        self._coder = coder

    def num_bytes(self, size: int) -> int:
        """Return choice and values together."""
        count = self._selection.num_kept(size)
        return self._selection.num_bytes(size) + self._coder.num_bytes(count)

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return the selected values' bytes, rounded by the coder."""
        chosen, choice = self._selection.select(values, rng)
        return choice + self._coder.encode(values[chosen], rng)

    def decode(self, payload: memoryview, size: int) -> Vector:
        """Return the selected values where they belong, and zeros elsewhere."""
        chosen, values = self.read(payload, size)
        vector = np.zeros(size, np.float32)
        vector[chosen] = values
        return vector

    def subtract(self, payload: memoryview, values: Vector) -> None:
        """Take the decoded values off, in place."""
        chosen, sent = self.read(payload, len(values))
        values[chosen] -= sent

    def read(self, payload: memoryview, size: int) -> tuple[Indices, Vector]:
        """Return the chosen coordinates and their values.

        Raises:
            UpdateRejected: reason ``payload``.
        """
        split = self._selection.num_bytes(size)
        chosen = self._selection.decode(payload[:split], size)
        return chosen, self._coder.decode(payload[split:], len(chosen))


class SummarisedCoder:
    """A sparse coder for what matters most, and a coarse, unbiased one for all the rest.

    Payload: what the sparse coder writes, then the rest, with zeros where it was chosen. Nothing
    is left to send later, so there is no error feedback. It suits clients that are seldom asked:
    what error feedback keeps back reaches the server rounds later, or never.
    """

    unbiased = False

    def __init__(self, sparse: SparseCoder, rest: ValueCoder) -> None:
        self._sparse = sparse
        self._rest = rest

    def num_bytes(self, count: int) -> int:
        """Return both parts together."""
        return self._sparse.num_bytes(count) + self._rest.num_bytes(count)

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return both parts' bytes."""
        chosen = self._sparse.encode(values, rng)
        rest = values.copy()
        rest[self._sparse.read(memoryview(chosen), len(values))[0]] = 0
        return chosen + self._rest.encode(rest, rng)

    def decode(self, payload: memoryview, count: int) -> Vector:
        """Return the rest's estimate with the chosen values in their places.

        Raises:
            UpdateRejected: reason ``payload``.
        """
        split = self._sparse.num_bytes(count)
        where, chosen = self._sparse.read(payload[:split], count)
        values = self._rest.decode(payload[split:], count)
        values[where] = chosen
        return values
