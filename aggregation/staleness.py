"""What a late update still weighs."""

from __future__ import annotations

EXPONENT = 0.5


def staleness_discount(num_rounds: int, exponent: float = EXPONENT) -> float:
    """Return ``(1 + num_rounds) ** -exponent`` for an update that many rounds late, in (0, 1].

    Source: FedBuff, Nguyen et al. 2022, arXiv:2106.06639.
    """
    return float((1 + num_rounds) ** -exponent)
