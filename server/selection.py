"""Which nodes are asked in a round, and how long a round waits for some to connect."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedge.clock import SYSTEM_CLOCK, Clock
from fedge.errors import DeadlineExceeded
from fedge.rng import stream
from server.round_exchange import Exchange
from server.settings import RoundsConfig

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 5.0

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cohort:
    """The nodes to ask, sorted, and how many good updates end the round at once."""

    nodes: tuple[int, ...]
    target: int

    def quorum(self, fraction: float) -> int:
        """Return how many updates suffice at the deadline; never none."""
        # 0.3 x 10 is a little more than 3 in binary; that must not ask for a fourth.
        return max(1, math.ceil(fraction * self.target - 1e-9))


def choose_cohort(rounds: RoundsConfig, candidates: Sequence[int], seed: int, round: int) -> Cohort:
    """Draw the cohort of a round; the same seed, round and candidates give the same one."""
    nodes = sorted(candidates)
    target, num_asked = _sizes(rounds, len(nodes))
    drawn = stream(seed, "selection", round=round).choice(len(nodes), num_asked, replace=False)
    return Cohort(tuple(nodes[index] for index in sorted(drawn)), target)


def draw_cohort(
    rounds: RoundsConfig,
    nodes: Sequence[int],
    is_free: Callable[[Indices], npt.NDArray[np.bool_]],
    seed: int,
    round: int,
) -> Cohort:
    """Draw the cohort of a round without looking at every node there is.

    Where all are free it is the one that `choose_cohort` draws.

    Args:
        nodes: sorted; a range of a million costs nothing.
        is_free: tells of nodes at these positions whether they can be asked.
    """
    target, num_asked = _sizes(rounds, len(nodes))
    rng = stream(seed, "selection", round=round)
    drawn = rng.choice(len(nodes), num_asked, replace=False)
    looked_at = drawn
    free = drawn[is_free(drawn)]
    while len(free) < num_asked and len(looked_at) < len(nodes):
        more = _draw_more(rng, len(nodes), looked_at, num_asked)
        looked_at = np.concatenate((looked_at, more))
        free = np.concatenate((free, more[is_free(more)]))
    chosen = np.sort(free[:num_asked])
    return Cohort(tuple(nodes[int(index)] for index in chosen), min(target, len(chosen)))


def _draw_more(rng: np.random.Generator, size: int, seen: Indices, num_asked: int) -> Indices:
    """Return positions that were not looked at yet, in random order."""
    if 4 * (len(seen) + num_asked) > size:
        return rng.permutation(np.setdiff1d(np.arange(size), seen, assume_unique=True))
    more = rng.choice(size, num_asked + len(seen) // 2, replace=False)
    return more[~np.isin(more, seen)]


def _sizes(rounds: RoundsConfig, num_nodes: int) -> tuple[int, int]:
    """Return how many updates are wanted and how many nodes are asked for them."""
    target = min(rounds.cohort_size or num_nodes, num_nodes)
    return target, min(num_nodes, math.ceil(target * rounds.over_selection - 1e-9))


class DeviceWatch:
    """Who is connected, and waiting for enough of them without ever waiting silently.

    Attributes:
        num_connected: nodes that were connected when the last wait ended.
    """

    def __init__(
        self, exchange: Exchange, rounds: RoundsConfig, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.num_connected = 0
        self._clock = clock
        self._exchange = exchange
        self._rounds = rounds
        self._seen: set[int] = set()

    def wait(self, needed: int, exhausted: Set[int]) -> list[int]:
        """Return the nodes that can be asked once at least ``needed`` are connected.

        Args:
            needed: connected nodes to wait for.
            exhausted: nodes that have no privacy budget left.

        Returns:
            None at all where every node that was ever seen has no budget left.

        Raises:
            DeadlineExceeded: not in ``rounds.wait_for_devices_s``; says who was missing.
        """
        ends_at = self._clock.monotonic() + self._rounds.wait_for_devices_s
        log_at = self._clock.monotonic()
        while True:
            self._exchange.collect_late()
            connected = self._exchange.connected()
            self._seen.update(connected)
            free = [n for n in connected if n not in exhausted and n not in self._exchange.busy]
            if len(connected) >= needed and (free or self._seen <= exhausted):
                self.num_connected = len(connected)
                # Whose late update waits has a part in the round already.
                return [n for n in free if n not in self._exchange.waiting] or free
            now = self._clock.monotonic()
            if now >= ends_at:
                raise DeadlineExceeded(self._failure(len(connected), needed))
            if now >= log_at:
                log.info("%s; %.0f s left", self._state(connected, needed), ends_at - now)
                log_at = now + LOG_INTERVAL_S
            self._clock.sleep(self._rounds.poll_interval_s)

    def free(self, exhausted: Set[int] = frozenset()) -> list[int]:
        """Return the nodes that can be asked right now."""
        busy = self._exchange.busy
        return [n for n in self._exchange.connected() if n not in exhausted and n not in busy]

    def _state(self, connected: list[int], needed: int) -> str:
        if len(connected) < needed:
            missing = needed - len(connected)
            return f"{len(connected)} of {needed} devices are connected, waiting for {missing} more"
        return f"{len(connected)} devices are connected, all of them busy or without budget"

    def _failure(self, num_connected: int, needed: int) -> str:
        waited = f"within rounds.wait_for_devices_s = {self._rounds.wait_for_devices_s:g}"
        if self._exchange.last_error:
            return f"the SuperLink could not be reached {waited}: {self._exchange.last_error}"
        if num_connected < needed:
            return (
                f"{num_connected} of {needed} devices connected {waited}: start more of them, look "
                "at their logs, or lower rounds.min_devices; started again, the run resumes"
            )
        return (
            f"no device was free {waited}: all {num_connected} connected ones still owe an answer "
            "or have no privacy budget left; started again, the run resumes"
        )
