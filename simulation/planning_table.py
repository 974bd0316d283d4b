"""The table of ``fedge-simulate what-if``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from fedge.errors import ConfigError
from simulation.devices.what_if import Alternative

_MEGABYTE = 1e6


def numbers_of(text: str, key: str) -> list[float]:
    """Return the numbers of an option such as ``60,120``.

    Raises:
        ConfigError: one is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"must be numbers with commas between them, got {text!r}", key=key
        ) from None


def planning_table(choices: Sequence[Sequence[Alternative]]) -> Table:
    """Return one row a choice, means over the rounds in which it was tried."""
    table = Table(title=f"means over {len(choices[0])} rounds, one an hour")
    for name in (
        "over-selection",
        "deadline s",
        "asked",
        "counted",
        "round s",
        "trained in vain",
        "MB down",
        "MB up",
    ):
        table.add_column(name, justify="right")
    for rows in choices:
        table.add_row(
            f"{rows[0].over_selection:g}",
            f"{rows[0].deadline_s:g}",
            f"{fmean(row.num_asked for row in rows):.1f}",
            f"{fmean(row.num_answered for row in rows):.1f}",
            f"{fmean(row.round_s for row in rows):.1f}",
            f"{fmean(row.num_unused for row in rows):.1f}",
            f"{fmean(row.bytes_down for row in rows) / _MEGABYTE:.2f}",
            f"{fmean(row.bytes_up for row in rows) / _MEGABYTE:.2f}",
        )
    return table
