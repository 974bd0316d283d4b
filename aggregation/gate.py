"""The gate that every update passes before it may touch an aggregate.

A refusal names client, round, and what was expected and found; it is counted by reason and the
round goes on. An update is admitted only if adding it up in float32 cannot overflow.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from aggregation.contracts import ClientUpdate
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector

MIN_EXAMPLES = 1e-6
MAX_SUMMABLE_NORM = 1e24
"""Norm that is refused even when any norm is allowed: times 1e6 examples times 1e8 clients it
still fits a float32 sum, which ends at 3.4e38."""
# BLAS starts threads for longer dot products, and on a busy machine they wait for each other: 360
# ms for 11 M parameters in place of 24.
_CHUNK = 1 << 13


@dataclass(frozen=True)
class GateLimits:
    """What an update may be at most.

    Attributes:
        max_norm: L2 norm of the delta; 0 allows any that float32 can sum.
        max_examples: example weight.
    """

    max_norm: float = 0.0
    max_examples: float = 1e6


class UpdateGate:
    """Admit one update a client and round, or say why not.

    Attributes:
        counts: refusals of the open round by reason: ``round``, ``parent``, ``duplicate``,
            ``layout``, ``dtype``, ``shape``, ``examples``, ``not-finite``, ``norm``. A caller
            that refuses earlier (while decoding) counts here too.
    """

    def __init__(self, layout: Layout, limits: GateLimits) -> None:
        self.counts: Counter[str] = Counter()
        self._layout = layout
        self._limits = limits
        self._max_norm = min(limits.max_norm or math.inf, MAX_SUMMABLE_NORM)
        self._round: int | None = None
        self._parent = ""
        self._admitted: set[int] = set()

    def open_round(self, round: int, parent: str) -> None:
        """Begin a round: forget who was admitted and what was refused in the last one."""
        self._round = round
        self._parent = parent
        self._admitted.clear()
        self.counts.clear()

    def admit(
        self,
        client: int,
        delta: Vector,
        num_examples: float,
        *,
        round: int,
        parent: str,
        layout_digest: str | None,
    ) -> ClientUpdate:
        """Return the checked update.

        Args:
            client: Flower's node id, never what a client says it is.
            delta: client weights less parent weights, ``[layout.size]``.
            num_examples: example weight; at least 1e-6, so that it can be divided by.
            round: the round the update says it is for.
            parent: digest of the weights the update says it started from.
            layout_digest: layout the update says it has; None where the bytes were checked by
                tensor name (a stock Flower client).

        Raises:
            UpdateRejected: with client and open round; counted in `counts`.
        """
        try:
            self._check_claims(client, round, parent, layout_digest)
            delta = self._layout.check(delta)
            weight = self._check_examples(num_examples)
            self._check_values(delta)
        except UpdateRejected as error:
            self.counts[error.reason] += 1
            opened = round if self._round is None else self._round
            raise error.located(client=client, round=opened) from None
        self._admitted.add(client)
        return ClientUpdate(client, delta, weight)

    def _check_claims(
        self, client: int, round: int, parent: str, layout_digest: str | None
    ) -> None:
        if round != self._round:
            raise UpdateRejected("round", expected=self._round, got=round)
        if parent != self._parent:
            raise UpdateRejected("parent", expected=self._parent[:12], got=parent[:12])
        if client in self._admitted:
            raise UpdateRejected("duplicate", expected="one update a round", got="another")
        if layout_digest is not None and layout_digest != self._layout.digest:
            expected = self._layout.digest[:12]
            raise UpdateRejected("layout", expected=expected, got=layout_digest[:12])

    def _check_examples(self, num_examples: object) -> float:
        low, high = MIN_EXAMPLES, self._limits.max_examples
        value = _as_float(num_examples)
        if not low <= value <= high:
            raise UpdateRejected("examples", expected=f"{low:g} to {high:g}", got=f"{value:g}")
        return value

    def _check_values(self, delta: Vector) -> None:
        norm = math.sqrt(squared_norm(delta))
        if not math.isfinite(norm):
            raise UpdateRejected("not-finite", expected="finite values", got=norm)
        if norm > self._max_norm:
            raise UpdateRejected("norm", expected=f"at most {self._max_norm:g}", got=f"{norm:g}")


def _as_float(value: object) -> float:
    """Return a number as a float; NaN for what is none, such as True."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def squared_norm(vector: Vector) -> float:
    """Return the sum of squares in float64, in one pass.

    A square of a finite float32 cannot overflow float64, so the result is NaN or infinite if
    and only if an entry is.
    """
    total = 0.0
    scratch = np.empty(min(_CHUNK, vector.size), np.float64)
    with np.errstate(invalid="ignore"):  # a signalling NaN would warn while it is widened
        for start in range(0, vector.size, _CHUNK):
            chunk = vector[start : start + _CHUNK]
            wide = scratch[: chunk.size]
            wide[...] = chunk
            total += float(np.dot(wide, wide))
    return total
