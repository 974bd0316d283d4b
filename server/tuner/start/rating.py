"""Which of several candidates is worth its price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from server.tuner.search import error_of_gain, log_mean
from server.tuner.settings import StartConfig
from server.tuner.space import Values
from server.tuner.start.price import Price

CHANCE = 0.02
"""Probability that any of the candidates is taken where all are equal."""


@dataclass(frozen=True)
class Tried:
    """One candidate.

    Attributes:
        losses: of each held-out proxy example after its virtual federation, by draw of central
            noise, ``[D, N]``; None where the candidate cannot be had.
        price: what it costs a device; None where all candidates cost the same.
    """

    values: Values
    losses: tuple[tuple[float, ...], ...] | None = None
    price: Price | None = None


@dataclass(frozen=True)
class Rated:
    """A candidate beside the configured point.

    Attributes:
        loss: mean over draws and held-out proxy examples.
        score: fall of the loss's logarithm less what it costs more; 0 for the configured point.
        error: standard error of the score, examples and draws paired.
    """

    values: Values
    loss: float
    price: Price | None
    score: float
    error: float


def rate(tried: Sequence[Tried], config: StartConfig) -> list[Rated]:
    """Return the candidates that can be had; the first is what the others are compared with."""
    found: list[Rated] = []
    for each in tried:
        if each.losses is None:
            continue
        losses = np.array(each.losses)
        if not found:
            base, first = losses, each.price
        gains = [
            log_mean(before) - log_mean(after) for before, after in zip(base, losses, strict=True)
        ]
        error = error_of_gain(base.mean(axis=0), losses.mean(axis=0))
        if len(gains) > 1:
            error = math.hypot(error, float(np.std(gains, ddof=1)) / math.sqrt(len(gains)))
        score = float(np.mean(gains)) - _dearer(first, each.price, config)
        found.append(Rated(each.values, float(losses.mean()), each.price, score, error))
    return found


def _dearer(first: Price | None, price: Price | None, config: StartConfig) -> float:
    """Return what a price is above the first one, as a fall of the loss's logarithm."""
    if first is None or price is None:
        return 0.0
    latency = math.log2(price.latency_s / first.latency_s)
    size = math.log2(price.size_bytes / first.size_bytes)
    return config.latency_price * latency + config.size_price * size


def choose(rated: Sequence[Rated]) -> Rated:
    """Return the best of those clearly better than the configured point, or that one.

    Clearly: beyond what one of so many equals would be by chance, of which the more there are the
    more is asked (Bonferroni).
    """
    errors = NormalDist().inv_cdf(1 - CHANCE / max(1, len(rated) - 1))
    clear = [each for each in rated if each.score > errors * each.error]
    return max(clear, key=lambda each: each.score, default=rated[0])


def table(rated: Sequence[Rated]) -> list[str]:
    """Return one line for each candidate, best first, under a line of headings."""
    names = list(rated[0].values)
    head = [*names, "loss", "latency (us)", "bytes", "score", "+/-"]
    rows = [
        [
            *(_say(each.values[name]) for name in names),
            f"{each.loss:.4f}",
            "" if each.price is None else f"{each.price.latency_s * 1e6:.1f}",
            "" if each.price is None else f"{each.price.size_bytes:,}",
            f"{each.score:+.3f}",
            f"{each.error:.3f}",
        ]
        for each in sorted(rated, key=lambda each: -each.score)
    ]
    columns = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]


def _say(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
