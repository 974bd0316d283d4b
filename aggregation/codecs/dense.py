"""Every coordinate travels, in fewer bits each."""

from __future__ import annotations

import numpy as np

from aggregation.codecs.coders import ValueCoder
from aggregation.codecs.energy import distortion, energy, error_energy
from aggregation.contracts import Encoded, Memory
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector


class DenseCodec:
    """One coder over the whole vector; keeps no state.

    The bias of f16, bf16 and eden is far below what error feedback over rounds would cost a
    device, a vector as long as the model that is stale by the time it is asked again.
    """

    def __init__(self, spec: str, coder: ValueCoder) -> None:
        self._spec = spec
        self._coder = coder

    @property
    def unbiased(self) -> bool:
        """Tell whether the coder is."""
        return self._coder.unbiased

    def init(self, layout: Layout) -> Memory:  # noqa: ARG002
        """Return an empty state."""
        return {}

    def encode(
        self, delta: Vector, state: Memory, rng: np.random.Generator
    ) -> tuple[Encoded, Memory]:
        """Return the encoded delta; distortion is against the delta.

        Raises:
            UpdateRejected: reason ``not-finite``: the delta has NaN or infinite values.
        """
        whole = energy(delta)
        payload = self._coder.encode(delta, rng)
        decoded = self._coder.decode(memoryview(payload), len(delta))
        lost = distortion(error_energy(delta, decoded), whole)
        return Encoded(self._spec, payload, bits_each(payload, len(delta)), lost), state

    def decode(self, payload: bytes, layout: Layout) -> Vector:
        """Return the delta.

        Raises:
            UpdateRejected: reason ``bytes`` for a wrong length, ``payload`` for wrong content.
        """
        check_length(payload, self._coder.num_bytes(layout.size))
        return self._coder.decode(memoryview(payload), layout.size)


def bits_each(payload: bytes, size: int) -> float:
    """Return bits a parameter; 0 for an empty vector."""
    return 8 * len(payload) / size if size else 0.0


def check_length(payload: bytes, expected: int) -> None:
    """Refuse a payload of any other length.

    Raises:
        UpdateRejected: reason ``bytes``.
    """
    if len(payload) != expected:
        raise UpdateRejected("bytes", expected=expected, got=len(payload))
