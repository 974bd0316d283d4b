"""Error feedback: what a round's payload left out is added to the next round's delta."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from aggregation.codecs.dense import bits_each, check_length
from aggregation.codecs.energy import distortion, energy
from aggregation.contracts import Encoded, Memory
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector

RESIDUAL = "residual"
_LARGEST = np.finfo(np.float32).max


class BiasedCoder(Protocol):
    """A coder that leaves out part of a vector on purpose."""

    def num_bytes(self, size: int) -> int:
        """Return the exact length of what `encode` writes."""
        ...

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return finite values' bytes."""
        ...

    def decode(self, payload: memoryview, size: int) -> Vector:
        """Return a new vector; the payload's length is right already.

        Raises:
            UpdateRejected: reason ``payload``.
        """
        ...

    def subtract(self, payload: memoryview, values: Vector) -> None:
        """Take off the values what `decode` returns, in place."""
        ...


class ErrorFeedback:
    """A codec whose state ``{"residual": Vector}`` holds what was not sent yet.

    After any number of rounds all decoded vectors and the residual add up to all deltas, to
    float32's rounding.

    Source: Stich et al., Sparsified SGD with Memory (2018); Karimireddy et al., Error Feedback
    Fixes SignSGD (2019).
    """

    unbiased = False

    def __init__(self, spec: str, coder: BiasedCoder) -> None:
        self._spec = spec
        self._coder = coder

    def init(self, layout: Layout) -> Memory:
        """Return a state where nothing is left to send."""
        return {RESIDUAL: np.zeros(layout.size, np.float32)}

    def encode(
        self, delta: Vector, state: Memory, rng: np.random.Generator
    ) -> tuple[Encoded, Memory]:
        """Return the encoded sum of delta and residual, and a new state; the old one is unchanged.

        Distortion is against that sum, the vector that was encoded.

        Raises:
            UpdateRejected: reason ``not-finite``, or ``state`` for a residual of another length.
        """
        residual = state[RESIDUAL]
        if residual.shape != delta.shape:
            raise UpdateRejected("state", expected=delta.shape, got=residual.shape)
        pending = _finite_sum(delta, residual)
        whole = energy(pending)
        payload = self._coder.encode(pending, rng)
        self._coder.subtract(memoryview(payload), pending)
        lost = distortion(energy(pending), whole)
        encoded = Encoded(self._spec, payload, bits_each(payload, len(delta)), lost)
        return encoded, {RESIDUAL: pending}

    def decode(self, payload: bytes, layout: Layout) -> Vector:
        """Return the delta as it was sent.

        Raises:
            UpdateRejected: reason ``bytes`` for a wrong length, ``payload`` for wrong content.
        """
        check_length(payload, self._coder.num_bytes(layout.size))
        return self._coder.decode(memoryview(payload), layout.size)


def _finite_sum(delta: Vector, residual: Vector) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        pending = np.add(delta, residual, dtype=np.float32)
        suspicious = not np.isfinite(np.dot(pending, pending))
    if suspicious and np.isfinite(delta).all():
        np.clip(pending, -_LARGEST, _LARGEST, out=pending)
    return pending
