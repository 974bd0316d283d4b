"""FLTrust: the cloud's own update says which way is forward and how far one step goes.

Source: Cao et al. 2021, arXiv:2012.13995.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from aggregation.columns import Floats, Rows, combine, map_chunks
from aggregation.contracts import BUFFERED, AggregatorOptions, Memory, RoundContext, UpdateFile
from aggregation.norms import SHORTEST_NORM
from fedge.errors import AggregationError
from fedge.params import Layout, Vector

_MIN_NORM = 1e-12
"""In norms of the reference; a shorter update is taken for none."""


@BUFFERED.register("fltrust")
class FLTrust:
    """Mean of updates scaled to the reference's norm, weighed by the cosine with it.

    An update that points away from the reference (cosine <= 0) weighs nothing; staleness
    multiplies what trust is left. A round in which no update is trusted is refused rather than
    answered with the reference: that would quietly be training on the cloud's data alone, and
    either the proxy data or the cohort needs a person's look.
    """

    needs_reference: ClassVar[bool] = True

    def __init__(self, options: AggregatorOptions) -> None:
        del options  # it assumes nothing of how many are hostile

    def finish(
        self, updates: UpdateFile, layout: Layout, context: RoundContext
    ) -> tuple[Vector, Memory]:
        """Return the trusted mean delta; nothing is remembered.

        Raises:
            AggregationError: there is no update, no usable reference or no trust.
        """
        if len(updates) == 0:
            raise AggregationError("there is no update for fltrust to weigh")
        reference, length = _unit(context)
        per_norm = _inverses(updates.norms, length)
        cosines = _projections(updates, layout.size, reference) * per_norm
        trust = np.maximum(cosines, 0) * updates.discounts
        if not trust.any():
            raise AggregationError(
                f"fltrust trusts none of {len(updates)} updates of round {context.round}: all "
                "point away from the cloud's own; see that its proxy data is like the clients' or "
                "take another aggregator"
            )
        return combine(updates, layout.size, trust / trust.sum() * length * per_norm), {}


def _unit(context: RoundContext) -> tuple[Vector, float]:
    """Return the reference's direction and its norm."""
    if context.reference is None:
        raise AggregationError(
            f"fltrust has no reference in round {context.round}: the cloud's own update did not "
            "come; see the trainer's log or take another aggregator"
        )
    length = float(np.linalg.norm(context.reference.astype(np.float64)))
    if not 0 < length < np.inf:
        raise AggregationError(
            f"fltrust's reference in round {context.round} has norm {length:g}: the cloud learnt "
            "nothing from its proxy data; see its hyperparameters"
        )
    return (context.reference / length).astype(np.float32), length


def _inverses(norms: Floats, length: float) -> Floats:
    """Return 1 / norm; 0 for one so short that scaling it up would overflow float32."""
    shortest = max(_MIN_NORM * length, SHORTEST_NORM)
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > shortest)


def _projections(updates: UpdateFile, size: int, direction: Vector) -> Floats:
    def project(part: slice, rows: Rows) -> Floats:
        products = torch.from_numpy(rows) @ torch.from_numpy(direction[part])
        return products.numpy().astype(np.float64)

    return sum(map_chunks(updates, size, project), start=np.zeros(len(updates)))
