"""What devices' encoding of a round's updates costs."""

from __future__ import annotations

import statistics

from fedge.messages import EncodedUpdate
from fedge.params import Layout


class UplinkCost:
    """What the encoding of a round's updates cost: bits on the wire, and distortion.

    The distortion is what devices say of it; nothing depends on it.
    """

    def __init__(self, layout: Layout) -> None:
        self._size = max(1, layout.size)
        self._bits: list[float] = []
        self._distortions: list[float] = []

    def add(self, update: EncodedUpdate) -> None:
        """Note one update."""
        self._bits.append(8 * len(update.payload) / self._size)
        self._distortions.append(update.distortion)

    def summary(self) -> dict[str, float | None]:
        """Return mean bits a parameter and mean distortion; None without an update."""
        if not self._bits:
            return {"uplink_bits": None, "uplink_distortion": None}
        return {
            "uplink_bits": statistics.fmean(self._bits),
            "uplink_distortion": statistics.fmean(self._distortions),
        }
