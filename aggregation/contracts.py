"""The contracts of this package: vectors in, vectors out, state explicit.

A vector is a contiguous 1-D float32 array (see `fedge.params`). Memory is what a method carries
from round to round; it is checkpointed, so it holds arrays and JSON scalars only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from fedge.naming import Registry
from fedge.params import Layout, Vector

S = TypeVar("S")
Memory = dict[str, Any]


@dataclass(frozen=True)
class RoundContext:
    """What a method may know of the round besides the updates.

    Attributes:
        reference: the cloud's own update from the same parent (FLTrust), if there is one.
        memory: what the method returned after the last round; empty in the first.
    """

    round: int
    reference: Vector | None = None
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True)
class ClientUpdate:
    """One admitted update.

    Attributes:
        delta: client weights less parent weights, ``[layout.size]``.
        num_examples: public example weight, > 0.
    """

    client: int
    delta: Vector
    num_examples: float


class StreamingAggregator(Protocol[S]):
    """Add one update and forget it; merge two partial sums."""

    def init(self, layout: Layout, context: RoundContext) -> S:
        """Return the state of an aggregate without updates."""
        ...

    def add(self, state: S, update: ClientUpdate) -> S:
        """Return the state with one more update; may reuse the given state's memory."""
        ...

    def merge(self, left: S, right: S) -> S:
        """Return the state of both sets of updates."""
        ...

    def finish(self, state: S) -> tuple[Vector, Memory]:
        """Return the aggregate delta and the memory for the next round.

        Raises:
            AggregationError: there is nothing to aggregate.
        """
        ...


class UpdateFile(Protocol):
    """Updates of one round on disk, read back in chunks of coordinates."""

    @property
    def num_examples(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the example weights, ``[N]``, in client order."""
        ...

    def __len__(self) -> int:
        """Return N, the number of updates."""
        ...

    def columns(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the coordinates [start, stop) of every update, ``[N, stop - start]``."""
        ...


class BufferedAggregator(Protocol):
    """A method that needs all updates at once (median, Krum, ...)."""

    def finish(
        self, updates: UpdateFile, layout: Layout, context: RoundContext
    ) -> tuple[Vector, Memory]:
        """Return the aggregate delta and the memory for the next round."""
        ...


class ServerOptimizer(Protocol[S]):
    """Turns an aggregate delta into the next global weights."""

    def init(self, layout: Layout) -> S:
        """Return the state before the first round: arrays and JSON scalars only."""
        ...

    def apply(self, weights: Vector, delta: Vector, state: S) -> tuple[Vector, S]:
        """Return the next weights (a new vector) and state."""
        ...


@dataclass(frozen=True)
class Encoded:
    """An update as it travels, and what it cost.

    Attributes:
        bits: bits per parameter.
        distortion: ‖decoded − delta‖² / ‖delta‖² (0 for a zero delta).
    """

    codec: str
    payload: bytes
    bits: float
    distortion: float


class Codec(Protocol[S]):
    """Encodes a delta on the device and decodes it on the server; state holds error feedback."""

    def init(self, layout: Layout) -> S:
        """Return the state before the first round."""
        ...

    def encode(self, delta: Vector, state: S, rng: np.random.Generator) -> tuple[Encoded, S]:
        """Return the encoded delta and the next state."""
        ...

    def decode(self, payload: bytes, layout: Layout) -> Vector:
        """Return the delta; sizes are checked before anything is allocated.

        Raises:
            UpdateRejected: the payload is not one of this codec for this layout.
        """
        ...


@dataclass(frozen=True)
class OptimizerOptions:
    """What a server optimiser may be configured with."""

    learning_rate: float = 1.0
    momentum: float = 0.9


STREAMING: Registry[type[StreamingAggregator[Any]]] = Registry("streaming aggregator")
BUFFERED: Registry[type[BufferedAggregator]] = Registry("buffered aggregator")
OPTIMIZERS: Registry[Callable[[OptimizerOptions], ServerOptimizer[Any]]] = Registry(
    "server optimizer"
)
CODECS: Registry[type[Codec[Any]]] = Registry("codec")
