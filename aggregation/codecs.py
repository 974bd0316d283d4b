"""Codecs: how a delta travels from a device to the server."""

from __future__ import annotations

import numpy as np

from aggregation.contracts import CODECS, Encoded, Memory
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector


@CODECS.register("raw")
class RawCodec:
    """Little-endian float32 as it is: nothing is lost, nothing is saved."""

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
        return Encoded("raw", payload, bits=32.0, distortion=0.0), state

    def decode(self, payload: bytes, layout: Layout) -> Vector:
        """Return a new vector with the payload's values; NaN and infinity are the gate's."""
        if len(payload) != layout.size_bytes:
            raise UpdateRejected("bytes", expected=layout.size_bytes, got=len(payload))
        return np.frombuffer(payload, "<f4").astype(np.float32)


def decode_payload(codec: str, payload: bytes, layout: Layout) -> Vector:
    """Return the delta of a payload whose codec a client named.

    Raises:
        UpdateRejected: reason ``codec`` where there is none of that name, or the codec's own.
    """
    if codec not in CODECS:
        raise UpdateRejected("codec", expected=", ".join(CODECS), got=f"{codec:.40}")
    return CODECS[codec]().decode(payload, layout)
