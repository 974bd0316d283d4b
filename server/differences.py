"""Weights as what differs from earlier ones, encoded once for all devices that ask."""

from __future__ import annotations

from collections import OrderedDict

from fedge.weight_delta import encode_delta
from server.publisher import Publisher

MAX_KEPT = 8
WORTH_IT = 0.95  # of the whole blob; a difference that is longer is not sent


class Differences:
    """Keeps the last few differences in memory; one caller at a time."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._kept: OrderedDict[tuple[str, str], bytes | None] = OrderedDict()

    def get(self, parent: str, digest: str) -> bytes | None:
        """Return a blob as its difference from another; None to send it whole."""
        key = (parent, digest)
        if key not in self._kept:
            self._kept[key] = self._encode(parent, digest)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _encode(self, parent: str, digest: str) -> bytes | None:
        try:
            with (
                self._publisher.open_blob(parent) as before,
                self._publisher.open_blob(digest) as after,
            ):
                old, new = before.read(), after.read()
        except OSError:  # one of them is not kept any more
            return None
        if len(old) != len(new) or len(new) % 4:
            return None
        encoded = encode_delta(old, new)
        return encoded if len(encoded) < WORTH_IT * len(new) else None
