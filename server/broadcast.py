"""What devices train from: the global weights, or what a lossy downlink makes of them.

With a downlink codec every device of a round trains from the same vector: that of the last round
plus the decoded difference to the global weights. What a codec loses is part of the next round's
difference, so it is caught up with. A device that holds one of the last rounds' vectors gets the
encoded differences since then, any other one the whole vector.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from aggregation.codecs import make_codec
from fedge.params import Layout, Vector, vector_digest
from fedge.requests import MAX_DOWNLINK_PAYLOADS, Downlink
from fedge.rng import stream

MEMORY = "broadcast"


@dataclass(frozen=True)
class _Step:
    """One round's encoded difference."""

    base: str
    payload: bytes


class Broadcast:
    """The vector that devices hold, round by round, and the way to it.

    Args:
        codec: spec of the downlink codec; empty sends whole weights always.
        layout: of the global model.
        seed: of the codec's draws.

    Attributes:
        weights: what the open round's devices train from.
        parent: its digest.
    """

    def __init__(self, codec: str, layout: Layout, seed: int) -> None:
        self.weights: Vector = np.zeros(layout.size, np.float32)
        self.parent = ""
        self._spec = codec
        self._codec = make_codec(codec) if codec else None
        self._layout = layout
        self._seed = seed
        self._steps: deque[_Step] = deque(maxlen=MAX_DOWNLINK_PAYLOADS)
        self._held: dict[int, str] = {}

    @property
    def is_lossy(self) -> bool:
        """Tell whether devices hold something else than the global weights."""
        return self._codec is not None

    def advance(self, weights: Vector, memory: dict[str, Any], round: int) -> None:
        """Set what the round's devices train from.

        Args:
            weights: global weights.
            memory: of the last checkpoint; it holds the last round's vector.
        """
        last = self._last(memory)
        if self._codec is None or last is None:
            self._steps.clear()
            self._set(weights)
            return
        difference = weights - last
        rng = stream(self._seed, "downlink", round=round)
        # A fresh state each round: the difference holds what earlier rounds lost already.
        encoded, _ = self._codec.encode(difference, self._codec.init(self._layout), rng)
        base = vector_digest(last)
        if self.parent and base != self.parent:
            self._steps.clear()
        self._steps.append(_Step(base, encoded.payload))
        self._set(last + self._codec.decode(encoded.payload, self._layout))
        self._drop_useless()

    def remember(self, memory: dict[str, Any]) -> dict[str, Any]:
        """Return the memory to checkpoint: with what devices hold now where that matters."""
        return {**memory, MEMORY: self.weights} if self.is_lossy else memory

    def downlink(self, node: int) -> Downlink | None:
        """Return the way from what a node holds to this round's vector; None for no short one."""
        held = self._held.get(node)
        if held is None or not self.is_lossy:
            return None
        if held == self.parent:
            return Downlink(held, self.parent, self._spec, ())
        bases = [step.base for step in self._steps]
        if held not in bases:
            return None
        payloads = tuple(step.payload for step in list(self._steps)[bases.index(held) :])
        if sum(map(len, payloads)) >= self._layout.size_bytes:
            return None
        return Downlink(held, self.parent, self._spec, payloads)

    def note_holds(self, node: int, parent: str) -> None:
        """Remember that a node said it keeps a version."""
        if self.is_lossy:
            self._held[node] = parent

    def forget(self, node: int) -> None:
        """A node lost what it held: it gets whole weights."""
        self._held.pop(node, None)

    def _drop_useless(self) -> None:
        """Forget steps whose way is no shorter than whole weights, and whom they led from."""
        while sum(len(step.payload) for step in self._steps) >= max(1, self._layout.size_bytes):
            self._steps.popleft()
        useful = {self.parent, *(step.base for step in self._steps)}
        self._held = {node: held for node, held in self._held.items() if held in useful}

    def _set(self, vector: Vector) -> None:
        self.weights = vector
        self.parent = vector_digest(vector)

    def _last(self, memory: dict[str, Any]) -> Vector | None:
        last = memory.get(MEMORY)
        fits = isinstance(last, np.ndarray) and last.shape == (self._layout.size,)
        return last if fits else None
