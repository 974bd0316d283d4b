"""One version's trial: which devices get it first, what they say of it, and what follows."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.settings import CanaryConfig

MAX_REPORTS = 10_000
Clock = Callable[[], float]


@dataclass(frozen=True)
class Verdict:
    """How a trial ended.

    Attributes:
        promoted: everyone gets the version; else it is withdrawn.
        served, refused: canaries that serve it, and that do not.
        reasons: why not, as the devices say, a few of them.
    """

    promoted: bool
    served: int
    refused: int
    reasons: tuple[str, ...] = ()


def is_canary(node: str, round: int, fraction: float) -> bool:
    """Tell whether a device gets a round's version first; each round draws others, stably."""
    digest = hashlib.sha256(f"{round}:{node}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < fraction


class Trial:
    """The trial of one version; safe across threads.

    Args:
        version: id that devices report on.
        clock: seconds that never go back.
    """

    def __init__(
        self, version: str, round: int, config: CanaryConfig, clock: Clock = time.monotonic
    ) -> None:
        self.version = version
        self._round = round
        self._config = config
        self._clock = clock
        self._ends_at = clock() + config.trial_s
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._reasons: dict[str, str] = {}  # by node; empty for one that serves it

    def includes(self, node: str) -> bool:
        """Tell whether a device takes part."""
        return is_canary(node, self._round, self._config.fraction)

    def told(self, node: str) -> None:
        """Note that a canary was sent the version."""
        with self._lock:
            if len(self._told) < MAX_REPORTS:
                self._told.add(node)

    def report(self, node: str, reason: str) -> None:
        """Note what a canary says: why it does not serve the version; empty if it does.

        Devices that were not sent the version are not heard.
        """
        with self._lock:
            if node in self._told:
                self._reasons[node] = reason

    def verdict(self) -> Verdict | None:
        """Return how the trial ended, None while it goes on."""
        with self._lock:
            reasons = [reason for reason in self._reasons.values() if reason]
            served = len(self._reasons) - len(reasons)
            limit = self._config.tolerance
            certain = len(reasons) > limit * max(1, len(self._told)) and bool(reasons)
            over = self._clock() >= self._ends_at
            if not certain and not over:
                return None
            refused_too_often = len(reasons) > limit * max(1, len(self._reasons))
            return Verdict(not refused_too_often, served, len(reasons), tuple(reasons[:3]))
