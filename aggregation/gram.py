"""Squared distances between all updates of a round, by one matrix product."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from aggregation.columns import Floats, Rows, map_chunks
from aggregation.contracts import UpdateFile

_MAX_MEDIANS = 1e3
# A float32 product over so many coordinates is off by a few 1e-6 at worst; shorter ones are slow.
_BLOCK = 8192
# Squares of norms up to this one fit float32.
_MAX_NORM = 1e15


def shortening(norms: Floats) -> Floats:
    """Return what to multiply updates with, ``[N]`` in (0, 1], so that none is out of reach.

    One that is longer than 1000 times the median norm is shortened to that. It stays far from
    all others, but no longer swamps the distances between them, which a float32 product would
    lose and a hostile 1e20 would turn into infinities.
    """
    median = np.sort(norms)[(len(norms) - 1) // 2]
    limit = min(_MAX_MEDIANS * median or _MAX_NORM, _MAX_NORM)
    factors = np.ones_like(norms)
    np.divide(limit, norms, out=factors, where=norms > limit)
    return factors


def squared_distances(updates: UpdateFile, size: int) -> Floats:
    """Return ‖x_i − x_j‖² of the shortened updates, ``[N, N]``: symmetric, >= 0, diagonal 0.

    Products of blocks are float32 and their sum is float64. What all updates have in common
    would cost precision, so the update of median norm is taken from each: with an honest
    majority it is no longer than the longest honest one.
    """
    norms = updates.norms
    factors = shortening(norms)
    longest = np.flatnonzero(factors < 1)
    scales = factors[longest, None].astype(np.float32)
    centre = np.argsort(norms, kind="stable")[(len(norms) - 1) // 2]

    def product(_: slice, rows: Rows) -> Floats:
        rows[longest] *= scales
        rows -= rows[centre].copy()
        return _product(rows)

    with threadpool_limits(1, "blas"):  # the chunks are shared out among the cores already
        gram = sum(map_chunks(updates, size, product), start=np.zeros((len(norms), len(norms))))
    squares = gram.diagonal()
    distances = np.maximum(squares[:, None] + squares - (gram + gram.T), 0)
    np.fill_diagonal(distances, 0)
    return distances


def _product(rows: Rows) -> Floats:
    """Return the products of all pairs of ``[N, K]`` rows, ``[N, N]``."""
    gram = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK]
        gram += block @ block.T  # numpy sees the symmetry and multiplies half
    return gram
