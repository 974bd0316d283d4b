"""The codec that changes nothing."""

from __future__ import annotations

import numpy as np

from aggregation.contracts import Encoded, Memory
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector


class RawCodec:
    """Little-endian float32 as it is: nothing is lost, nothing is saved."""

    unbiased = True

    def init(self, layout: Layout) -> Memory:  # noqa: ARG002
        """Return an empty state: there is no error to feed back."""
        return {}

    def encode(
        self,
        delta: Vector,
        state: Memory,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[Encoded, Memory]:
        """Return the delta's own bytes."""
        payload = delta.astype("<f4", copy=False).tobytes()
        return Encoded("raw", payload, bits=32.0 if len(delta) else 0.0, distortion=0.0), state

    def decode(self, payload: bytes, layout: Layout) -> Vector:
        """Return the payload's values; NaN and infinity are the gate's.

        A read-only view where the machine is little-endian: a copy of 11 M values would take
        longer than to check and add them.
        """
        if len(payload) != layout.size_bytes:
            raise UpdateRejected("bytes", expected=layout.size_bytes, got=len(payload))
        return np.frombuffer(payload, "<f4").astype(np.float32, copy=False)
