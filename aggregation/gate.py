"""The gate that every update passes before it may touch an aggregate.

A refusal names client, round, and what was expected and found; whoever takes the updates in counts
it by reason and the round goes on. An update is admitted only if adding it up in float32 cannot
overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aggregation.contracts import ClientUpdate
from aggregation.norms import norm_of
from aggregation.staleness import staleness_discount
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector
from fedge.personal import personal_part

MIN_EXAMPLES = 1e-6
MAX_SUMMABLE_NORM = 1e18
"""Norm that is refused even when any norm is allowed: its square fits a float32, which ends at
3.4e38, and so does it times 1e6 examples times 1e8 clients."""
MAX_STEPS = 1e6


@dataclass(frozen=True)
class GateLimits:
    """What an update may be at most.

    Attributes:
        max_norm: L2 norm of the delta; 0 allows any that float32 can sum.
        max_examples: example weight.
        max_staleness: rounds that an update may be late.
        max_epochs, batch_size: what clients were asked to train; they bound the steps that an
            update with so many examples may say it took. 0 epochs bound nothing.
        needs_steps: whether the aggregator divides by local steps, so that a stock client, which
            does not report them, cannot take part.
        personal_layers: patterns of parameters that stay on the clients; what an update says of
            them is taken as zero.
    """

    max_norm: float = 0.0
    max_examples: float = 1e6
    max_staleness: int = 0
    max_epochs: int = 0
    batch_size: int = 1
    needs_steps: bool = False
    personal_layers: tuple[str, ...] = ()

    def most_steps(self, num_examples: float) -> float:
        """Return the steps of all epochs over so many examples; one more an epoch for rounding."""
        if self.max_epochs == 0:
            return MAX_STEPS
        return float(self.max_epochs * (math.ceil(num_examples / self.batch_size) + 1))


class UpdateGate:
    """Admit one update a client and aggregate, or say why not.

    The reasons are ``round``, ``parent``, ``duplicate``, ``layout``, ``dtype``, ``shape``,
    ``examples``, ``steps``, ``not-finite`` and ``norm``.
    """

    def __init__(self, layout: Layout, limits: GateLimits) -> None:
        self._layout = layout
        self._limits = limits
        self._personal = personal_part(layout, limits.personal_layers)
        self._max_norm = min(limits.max_norm or math.inf, MAX_SUMMABLE_NORM)
        self._round = -1
        self._parents: dict[int, str] = {}
        self._admitted: set[int] = set()

    @property
    def needs_steps(self) -> bool:
        """Tell whether an update must say how many local steps it took."""
        return self._limits.needs_steps

    def open_round(self, round: int, parent: str) -> None:
        """Begin a round: forget who was admitted in the last one, and what is too old."""
        self._round = round
        oldest = round - self._limits.max_staleness
        self._parents = {r: p for r, p in self._parents.items() if oldest <= r < round}
        self._parents[round] = parent
        self._admitted.clear()

    def admit(
        self,
        client: int,
        delta: Vector,
        num_examples: float,
        *,
        round: int,
        parent: str,
        layout_digest: str | None,
        num_steps: float = 1.0,
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
            num_steps: local steps the update says it took.

        Raises:
            UpdateRejected: with client and open round.
        """
        try:
            self._check_claims(client, round, parent, layout_digest)
            delta = self._layout.check(delta)
            weight = _within("examples", num_examples, MIN_EXAMPLES, self._limits.max_examples)
            steps = _within("steps", num_steps, 1.0, self._limits.most_steps(weight))
            if self._personal is not None:
                delta = self._personal.without(delta)
            norm = self._check_values(delta)
        except UpdateRejected as error:
            opened = round if self._round < 0 else self._round
            raise error.located(client=client, round=opened) from None
        self._admitted.add(client)
        discount = staleness_discount(self._round - round)
        return ClientUpdate(client, delta, weight, norm, steps, discount)

    def _check_claims(
        self, client: int, round: int, parent: str, layout_digest: str | None
    ) -> None:
        if round not in self._parents:
            oldest = min(self._parents, default=self._round)
            span = f"{oldest}" if oldest == self._round else f"{oldest} to {self._round}"
            raise UpdateRejected("round", expected=span, got=round)
        if parent != self._parents[round]:
            expected = self._parents[round][:12]
            raise UpdateRejected("parent", expected=expected, got=parent[:12])
        if client in self._admitted:
            raise UpdateRejected("duplicate", expected="one update a round", got="another")
        if layout_digest is not None and layout_digest != self._layout.digest:
            expected = self._layout.digest[:12]
            raise UpdateRejected("layout", expected=expected, got=layout_digest[:12])

    def _check_values(self, delta: Vector) -> float:
        norm = norm_of(delta)
        if math.isnan(norm) or (math.isinf(norm) and not np.isfinite(delta).all()):
            raise UpdateRejected("not-finite", expected="finite values", got=norm)
        if norm > self._max_norm:
            got = f"more than {MAX_SUMMABLE_NORM:g}" if math.isinf(norm) else f"{norm:g}"
            raise UpdateRejected("norm", expected=f"at most {self._max_norm:g}", got=got)
        return norm


def _within(reason: str, value: object, low: float, high: float) -> float:
    """Return a client's claim as a float if it is a number from low to high."""
    number = _as_float(value)
    if not low <= number <= high:
        raise UpdateRejected(reason, expected=f"{low:g} to {high:g}", got=f"{number:g}")
    return number


def _as_float(value: object) -> float:
    """Return a number as a float; NaN for what is none, such as True."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf
