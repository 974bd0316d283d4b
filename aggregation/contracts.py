"""The contracts of this package: vectors in, vectors out, state explicit.

A vector is a contiguous 1-D float32 array (see `fedge.params`). Memory is what a method carries
from round to round; it is checkpointed, so it holds arrays and JSON scalars only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from fedge.naming import Registry
from fedge.params import Layout, Vector

if TYPE_CHECKING:
    from fedge.privacy.noise import Draws  # brings torch, which a device's codecs do without

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
        norm: L2 norm of the delta, finite.
        num_steps: local steps it took, >= 1.
        discount: what staleness leaves of its weight, in (0, 1]. Robust rules act on the delta
            before it.
    """

    client: int
    delta: Vector
    num_examples: float
    norm: float
    num_steps: float = 1.0
    discount: float = 1.0

    @property
    def weight(self) -> float:
        """Example weight after staleness."""
        return self.num_examples * self.discount


@dataclass(frozen=True)
class AggregatorOptions:
    """What an aggregator may be configured with.

    Attributes:
        malicious_fraction: share of the updates that may be hostile; below one half.
        norm_bound: L2 norm that an update is scaled down to; 0 adapts it to the median norm of
            the last round.
        bound_factor: adaptive bound in median norms.
        learning_rate, momentum: what the clients of this round train with (SCAFFOLD, FedNova).
        num_clients: clients in all, of which a round asks some (SCAFFOLD); 0 takes as many as
            send an update.
        clip_norm: L2 norm that the private mean scales updates down to.
        noise_multiplier: standard deviation of the private mean's noise in clipping norms.
        expected_cohort: public number that the private mean divides by.
        draws: where its noise comes from; None is the operating system's entropy.
    """

    malicious_fraction: float = 0.2
    norm_bound: float = 0.0
    bound_factor: float = 1.0
    learning_rate: float = 1.0
    momentum: float = 0.0
    num_clients: int = 0
    clip_norm: float = 1.0
    noise_multiplier: float = 0.0
    expected_cohort: int = 1
    draws: Draws | None = None


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
    def weights(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the example weights after staleness, ``[N]``, in client order."""
        ...

    @property
    def discounts(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return what staleness leaves of each update, ``[N]`` in (0, 1], in client order."""
        ...

    @property
    def norms(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the L2 norms, ``[N]``, in client order."""
        ...

    def __len__(self) -> int:
        """Return N, the number of updates."""
        ...

    def columns(
        self, start: int, stop: int, chosen: np.ndarray[Any, np.dtype[np.intp]] | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a copy of the coordinates [start, stop), ``[N, stop - start]``.

        Of all updates, or of those chosen by index in client order. Several threads may read at
        once.
        """
        ...


class BufferedAggregator(Protocol):
    """A method that needs all updates at once (median, Krum, ...).

    Attributes:
        needs_reference: whether the context must hold the cloud's own update (FLTrust).
    """

    needs_reference: ClassVar[bool]

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
        distortion: ‖decoded − x‖² / ‖x‖² (0 where x is zero), x what was encoded: the delta, or
            under error feedback delta and residual together.
    """

    codec: str
    payload: bytes
    bits: float
    distortion: float


class Codec(Protocol[S]):
    """Encodes a delta on the device and decodes it on the server; state holds error feedback."""

    @property
    def unbiased(self) -> bool:
        """Tell whether the decoded delta's expectation is the delta."""
        ...

    def init(self, layout: Layout) -> S:
        """Return the state before the first round."""
        ...

    def encode(self, delta: Vector, state: S, rng: np.random.Generator) -> tuple[Encoded, S]:
        """Return the encoded delta and the next state."""
        ...

    def decode(self, payload: bytes, layout: Layout) -> Vector:
        """Return the delta, not to be written to; sizes are checked before it is allocated.

        Raises:
            UpdateRejected: the payload is not one of this codec for this layout.
        """
        ...


@dataclass(frozen=True)
class OptimizerOptions:
    """What a server optimiser may be configured with.

    Attributes:
        momentum: of FedAvgM.
        beta_1: decay of the first moment in FedAdam and FedYogi, in [0, 1).
        beta_2: decay of the second moment in FedAdam and FedYogi, in [0, 1).
        tau: added to the root of the second moment, > 0; smaller adapts more.
    """

    learning_rate: float = 1.0
    momentum: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3


STREAMING: Registry[Callable[[AggregatorOptions], StreamingAggregator[Any]]] = Registry(
    "streaming aggregator"
)
BUFFERED: Registry[Callable[[AggregatorOptions], BufferedAggregator]] = Registry(
    "buffered aggregator"
)
OPTIMIZERS: Registry[Callable[[OptimizerOptions], ServerOptimizer[Any]]] = Registry(
    "server optimizer"
)
