"""Which labelled samples stay when there is no room for all: ``store.retention``.

Labelled samples are what training needs. Unlabelled ones only wait for their label, so they make
room first, oldest first, until they take no more than a quarter of the store; then labelled ones
do, as one of the classes here says.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from typing import Protocol

LABELLED_SHARE = 0.75  # of the bytes; beyond it labelled samples make room for unlabelled ones


class Retention(Protocol):
    """Chooses among labelled samples; every call is within a transaction of the caller."""

    def admits(self, connection: sqlite3.Connection, draw: float) -> bool:
        """Tell whether a sample that just got its first label may stay.

        Args:
            draw: the sample's own number, uniform in [0, 1).
        """
        ...

    def next_to_go(self, connection: sqlite3.Connection, keep: str) -> int | None:
        """Return the sequence of the labelled sample that makes room, None if there is none.

        Args:
            keep: id of the sample that room is made for; empty is none.
        """
        ...

    def after_expiry(self, connection: sqlite3.Connection, max_bytes: int) -> None:
        """Take notice that samples have reached their age."""
        ...


class Recency:
    """The newest labelled samples stay: for data that drift."""

    def admits(self, connection: sqlite3.Connection, draw: float) -> bool:  # noqa: ARG002
        """Admit every sample."""
        return True

    def next_to_go(self, connection: sqlite3.Connection, keep: str) -> int | None:
        """Return the oldest but the one that room is made for."""
        row = connection.execute(
            "SELECT sequence FROM samples WHERE target_dtype IS NOT NULL AND id != ? "
            "ORDER BY sequence LIMIT 1",
            (keep,),
        ).fetchone()
        return None if row is None else int(row[0])

    def after_expiry(self, connection: sqlite3.Connection, max_bytes: int) -> None:
        """Do nothing: there is no memory of what has gone."""


class Reservoir:
    """A uniform sample of all that were ever labelled stays: for data that do not drift.

    Algorithm R needs a fixed number of places; this store is bounded in bytes and age. So each
    sample draws a number once, and those below a threshold stay. The threshold falls to the
    largest draw kept whenever there is no room, and is remembered. Samples of one size stay with
    the same chance whenever they came: what algorithm R keeps. When age has emptied half of the
    store the threshold begins anew: else a device that once was busy would hardly keep anything
    later.

    Source: the random-sort form of reservoir sampling; Vitter, "Random sampling with a
    reservoir", ACM TOMS 11 (1985), for algorithm R.
    """

    def admits(self, connection: sqlite3.Connection, draw: float) -> bool:
        """Admit a draw below the threshold."""
        (threshold,) = connection.execute("SELECT threshold FROM totals").fetchone()
        return draw < float(threshold)

    def next_to_go(self, connection: sqlite3.Connection, keep: str) -> int | None:  # noqa: ARG002
        """Return the sample of the largest draw, which becomes the threshold."""
        row = connection.execute(
            "SELECT sequence, draw FROM samples WHERE target_dtype IS NOT NULL "
            "ORDER BY draw DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        connection.execute("UPDATE totals SET threshold = ?", (row[1],))
        return int(row[0])

    def after_expiry(self, connection: sqlite3.Connection, max_bytes: int) -> None:
        """Begin anew once age has emptied half of the store."""
        connection.execute(
            "UPDATE totals SET threshold = 1 WHERE labelled_bytes < ?", (max_bytes / 2,)
        )


RETENTIONS: dict[str, Callable[[], Retention]] = {"recency": Recency, "reservoir": Reservoir}


def draw_number() -> float:
    """Return a number uniform in [0, 1) that nobody can foretell."""
    return random.SystemRandom().random()
