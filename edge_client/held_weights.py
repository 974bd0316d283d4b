"""Global models that this device still has in memory, so that a delta can follow in their place."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from aggregation.codecs import make_codec
from fedge.errors import ConfigError, UpdateRejected
from fedge.messages import DeltaRequest, Refusal, WeightsRequest
from fedge.params import Vector, vector_digest

MAX_RUNS = 2
STALE_BASE = "stale-base"


class HeldWeights:
    """The last parent of each of at most two runs; a restart forgets them."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[str, Vector]] = OrderedDict()

    def holds(self, run_name: str, digest: str) -> bool:
        """Tell whether exactly this version is at hand."""
        held = self._held.get(run_name)
        return held is not None and held[0] == digest

    def keep(self, request: WeightsRequest, digest: str) -> None:
        """Hold a request's weights if it asks for that; else forget what its run held.

        Args:
            request: its weights are kept as they are and must not be written to.
            digest: of its weights, which takes a while to compute twice.
        """
        self._held.pop(request.run_name, None)
        if request.keep_parent:
            self._held[request.run_name] = (digest, request.weights)
            while len(self._held) > MAX_RUNS:
                self._held.popitem(last=False)

    def complete(self, request: WeightsRequest | DeltaRequest) -> WeightsRequest | Refusal:
        """Return the request with whole weights, or a refusal that asks for them."""
        if isinstance(request, WeightsRequest):
            return request
        held = self._held.get(request.run_name)
        if held is None:
            return Refusal(STALE_BASE, "this device holds no version of this run")
        digest, weights = held
        size = request.layout.size
        if weights.size != size:  # nothing may be planned or spent on weights that do not fit
            return Refusal(
                STALE_BASE, f"this device holds {weights.size} parameters, not the {size} asked for"
            )
        if digest == request.downlink.parent:
            return request.with_weights(weights)
        if digest != request.downlink.base:
            return Refusal(
                STALE_BASE,
                f"this device holds {digest[:12]}, the delta is against "
                f"{request.downlink.base[:12]}",
            )
        return _follow(request, weights)


def _follow(request: DeltaRequest, base: Vector) -> WeightsRequest | Refusal:
    """Add the payloads to the base, in order, and check where that leads."""
    downlink, layout = request.downlink, request.layout
    try:
        codec = make_codec(downlink.codec)
        weights = base.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # the digest tells what it led to
            for payload in downlink.payloads:
                weights += codec.decode(payload, layout)
    except (ConfigError, UpdateRejected) as error:
        return Refusal(STALE_BASE, f"the delta cannot be decoded: {error}")
    arrived = vector_digest(weights)
    if arrived != downlink.parent:
        return Refusal(
            STALE_BASE, f"the delta led to {arrived[:12]}, not to {downlink.parent[:12]}"
        )
    return request.with_weights(weights)
