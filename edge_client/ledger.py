"""The privacy ledger: what this device has spent, written down before it is spent.

A reservation counts as spent from the moment it is made, settled or not: a crash can over-count
and never under-count. ε itself needs Opacus and is computed by the worker; the ledger keeps the
spends it is computed from, and the number that was computed with each of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from fedge.errors import PrivacyError
from fedge.messages import RoundKey
from fedge.privacy.accounting import Spend

TRAIN = "train"


@dataclass(frozen=True)
class Entry:
    """One reservation.

    Attributes:
        partition: examples it was spent on; partitions are disjoint, so their ε do not add up.
        epsilon: ε of the partition, all entries up to this one together, at ``delta``.
        settled: whether the work was done; only for people who read the ledger.
    """

    key: str
    partition: str
    spend: Spend
    epsilon: float
    delta: float
    settled: bool = False


@dataclass(frozen=True)
class Account:
    """What a device has spent in all: the largest ε of its partitions, and its δ."""

    epsilon: float
    delta: float


class Ledger(Protocol):
    """One monotone account a device."""

    def spends(self, partition: str) -> tuple[Spend, ...]:
        """Return everything reserved or settled, oldest first."""
        ...

    def reserve(
        self, key: RoundKey, spend: Spend, *, partition: str, epsilon: float, delta: float
    ) -> int:
        """Write down a spend, durably, before it happens; return the entry's number.

        Raises:
            PrivacyError: it could not be written; then nothing may be spent.
        """
        ...

    def settle(self, number: int) -> None:
        """Note that the reserved work was done."""
        ...

    def noise_multiplier(self, run_name: str) -> float | None:
        """Return what was fixed for a run, or None in its first round."""
        ...

    def fix_noise_multiplier(self, run_name: str, noise_multiplier: float) -> None:
        """Keep the noise multiplier of a run."""
        ...

    def account(self) -> Account | None:
        """Return what is spent in all; None before the first reservation."""
        ...


@dataclass
class MemoryLedger:
    """A ledger that somebody else keeps: Flower's ``Context.state``, or a simulation.

    Attributes:
        save: called with the ledger's JSON after every change.
    """

    entries: list[Entry] = field(default_factory=list)
    noise_multipliers: dict[str, float] = field(default_factory=dict)
    save: Callable[[str], None] | None = None

    def spends(self, partition: str) -> tuple[Spend, ...]:
        """Return everything reserved or settled, oldest first."""
        return tuple(entry.spend for entry in self.entries if entry.partition == partition)

    def reserve(
        self, key: RoundKey, spend: Spend, *, partition: str, epsilon: float, delta: float
    ) -> int:
        """Write down a spend before it happens; return the entry's number."""
        self.entries.append(Entry(str(key), partition, spend, epsilon, delta))
        self._changed()
        return len(self.entries) - 1

    def settle(self, number: int) -> None:
        """Note that the reserved work was done."""
        self.entries[number] = replace(self.entries[number], settled=True)
        self._changed()

    def noise_multiplier(self, run_name: str) -> float | None:
        """Return what was fixed for a run, or None in its first round."""
        return self.noise_multipliers.get(run_name)

    def fix_noise_multiplier(self, run_name: str, noise_multiplier: float) -> None:
        """Keep the noise multiplier of a run."""
        self.noise_multipliers[run_name] = noise_multiplier
        self._changed()

    def account(self) -> Account | None:
        """Return what is spent in all; None before the first reservation."""
        return account_of(self.entries)

    def to_json(self) -> str:
        """Return everything as JSON, read back by `from_json`."""
        entries = [asdict(entry) for entry in self.entries]
        return json.dumps({"entries": entries, "noise_multipliers": self.noise_multipliers})

    @staticmethod
    def from_json(text: str, save: Callable[[str], None] | None = None) -> MemoryLedger:
        """Read what `to_json` wrote.

        Raises:
            PrivacyError: it is not a ledger; starting a new one would forget what was spent.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            entries = [Entry(**{**e, "spend": Spend(**e["spend"])}) for e in data["entries"]]
            return MemoryLedger(entries, dict(data["noise_multipliers"]), save)
        except (ValueError, TypeError, KeyError) as error:
            raise PrivacyError(f"the stored privacy ledger cannot be read: {error}") from error

    def _changed(self) -> None:
        if self.save is not None:
            self.save(self.to_json())


def account_of(entries: list[Entry]) -> Account | None:
    """Return the largest ε of all entries with its δ; None for no entries."""
    if not entries:
        return None
    most = max(entries, key=lambda entry: entry.epsilon)
    return Account(most.epsilon, most.delta)
