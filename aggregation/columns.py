"""The one way in which methods read the updates of a round: in chunks of coordinates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from aggregation.contracts import UpdateFile
from fedge.params import BYTES_PER_PARAMETER, Vector

Rows = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

# What fits a core's cache is sorted and multiplied up to three times faster than 16 MiB at a time.
_CHUNK_BYTES = 2 * 1024 * 1024


def chunks(updates: UpdateFile, size: int) -> Iterator[tuple[slice, Rows]]:
    """Read all coordinates, a few at a time, with their place in the vector.

    Args:
        updates: N of them.
        size: number of coordinates.

    Yields:
        A slice of coordinates and a copy of it, ``[N, K]``, which may be written to: about 2 MiB,
        whatever N is.
    """
    width = _width(len(updates))
    for start in range(0, size, width):
        part = slice(start, min(start + width, size))
        yield part, updates.columns(part.start, part.stop)


def combine(updates: UpdateFile, size: int, coefficients: Floats) -> Vector:
    """Return the sum of the updates times their coefficients ``[N]``; zero ones are left out."""
    chosen = np.flatnonzero(coefficients)
    factors = torch.from_numpy(coefficients[chosen].astype(np.float32))
    combined = np.empty(size, np.float32)
    for part, rows in chunks(updates, size):
        combined[part] = (factors @ torch.from_numpy(rows[chosen])).numpy()
    return combined


def _width(num_updates: int) -> int:
    # A row whose length is a power of two maps every row to the same cache lines: axis 0 of
    # [100, 4096] takes three times as long to sort as that of [100, 4099]. An odd one never does.
    return _CHUNK_BYTES // (BYTES_PER_PARAMETER * max(1, num_updates)) | 1
