"""Norms and torch views of vectors, also of those that are views of received bytes."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch

from fedge.params import Vector

# Long enough to run at memory speed, short enough that a float32 sum of squares stays exact to
# 1e-6: one sum over 11 M values was off by 4e-4.
_ROW = 1 << 13
SHORTEST_NORM = 1e-15
"""Far below it, squares vanish in float32 and a norm comes out up to thousands of times too short:
to divide by it would blow the update up."""


def tensor_of(vector: Vector) -> torch.Tensor:
    """Return a tensor on the vector's memory; for reading only where the vector is read-only."""
    return torch.from_numpy(vector)


def norm_of(vector: Vector) -> float:
    """Return the L2 norm in one pass.

    NaN or infinite if an entry is, and infinite where a square overflows float32: for norms
    above 1e18.
    """
    whole = vector.size - vector.size % _ROW
    # BLAS takes a fifth of the time that torch needs to begin, of a small model's every update.
    rest = math.sqrt(float(np.vdot(vector[whole:], vector[whole:])))
    if not whole:
        return rest
    rows = torch.linalg.vector_norm(tensor_of(vector)[:whole].view(-1, _ROW), dim=1).double()
    return math.hypot(torch.linalg.vector_norm(rows).item(), rest)


# Torch warns, once a process, of a tensor on read-only memory. Nothing here writes to one.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tensor_of(np.frombuffer(bytes(4), np.float32))
