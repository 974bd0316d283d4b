"""Which of several sizes of a model is worth its price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.tuner.model_price import Price
from server.tuner.search import CLEAR_ERRORS, error_of_gain, log_mean
from server.tuner.settings import ModelSearchConfig
from server.tuner.space import Values


@dataclass(frozen=True)
class SizedModel:
    """One candidate.

    Attributes:
        values: of the task's options.
        losses: of each held-out proxy example after its virtual federation; None where the
            candidate cannot be had.
        price: what it costs a device.
    """

    values: Values
    losses: tuple[float, ...] | None = None
    price: Price | None = None


@dataclass(frozen=True)
class Rated:
    """A candidate beside the configured sizes.

    Attributes:
        loss: mean over the held-out proxy examples.
        score: fall of the loss's logarithm less what it costs more; 0 for the configured sizes.
        error: standard error of the score, losses paired.
    """

    values: Values
    loss: float
    price: Price
    score: float
    error: float


def rate(models: Sequence[SizedModel], config: ModelSearchConfig) -> list[Rated]:
    """Return the candidates that can be had; the first is what the others are compared with."""
    found: list[Rated] = []
    for model in models:
        if model.losses is None or model.price is None:
            continue
        losses = np.array(model.losses)
        if not found:
            base, first = losses, model.price
        dearer = config.latency_price * math.log2(model.price.latency_s / first.latency_s)
        dearer += config.size_price * math.log2(model.price.size_bytes / first.size_bytes)
        score = log_mean(base) - log_mean(losses) - dearer
        error = error_of_gain(base, losses)
        found.append(Rated(model.values, float(losses.mean()), model.price, score, error))
    return found


def choose(rated: Sequence[Rated]) -> Rated:
    """Return the best of all, or the configured sizes unless it is clearly better."""
    best = max(rated, key=lambda each: each.score)
    return best if best.score > CLEAR_ERRORS * best.error else rated[0]


def table(rated: Sequence[Rated]) -> list[str]:
    """Return one line for each candidate, best first, under a line of headings."""
    names = list(rated[0].values)
    head = [*names, "loss", "latency (us)", "bytes", "score", "+/-"]
    rows = [
        [
            *(str(each.values[name]) for name in names),
            f"{each.loss:.4f}",
            f"{each.price.latency_s * 1e6:.1f}",
            f"{each.price.size_bytes:,}",
            f"{each.score:+.3f}",
            f"{each.error:.3f}",
        ]
        for each in sorted(rated, key=lambda each: -each.score)
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *rows)
    ]
