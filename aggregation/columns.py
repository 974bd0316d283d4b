"""The one way in which methods read the updates of a round: in chunks of coordinates."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aggregation.contracts import UpdateFile
from fedge.params import BYTES_PER_PARAMETER, Vector

T = TypeVar("T")
Rows = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# What fits a core's cache is sorted and multiplied up to three times faster than 16 MiB at a time.
_CHUNK_BYTES = 2 * 1024 * 1024


def map_chunks(
    updates: UpdateFile,
    size: int,
    work: Callable[[slice, Rows], T],
    chosen: Indices | None = None,
) -> Iterator[T]:
    """Return the results for all chunks in the order of their coordinates, worked on by all cores.

    One chunk a thread: numpy's and torch's own threads share out each call anew, and on a busy
    machine they wait for each other ten times as long as they work.

    Args:
        updates: N of them.
        size: number of coordinates.
        work: takes a slice of coordinates and a copy of it, ``[N, K]``, which it may write to:
            about 2 MiB, whatever N is.
        chosen: indices of the only updates to read; None reads all.
    """
    width = _width(len(updates) if chosen is None else len(chosen))

    def run(start: int) -> T:
        stop = min(start + width, size)
        return work(slice(start, stop), updates.columns(start, stop, chosen))

    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        # Few at a time: results that nobody has taken yet are [N, N] each for the distances.
        waiting: deque[Future[T]] = deque()
        for start in range(0, size, width):
            waiting.append(pool.submit(run, start))
            if len(waiting) > 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def reduce_columns(
    updates: UpdateFile,
    size: int,
    reduce: Callable[[Rows], Vector],
    chosen: Indices | None = None,
) -> Vector:
    """Return what a function from ``[N, K]`` to ``[K]`` makes of all coordinates, ``[size]``."""
    result = np.empty(size, np.float32)

    def work(part: slice, rows: Rows) -> None:
        result[part] = reduce(rows)

    for _ in map_chunks(updates, size, work, chosen):
        pass
    return result


def combine(updates: UpdateFile, size: int, coefficients: Floats) -> Vector:
    """Return the sum of the updates times their coefficients ``[N]``; zero ones are not read."""
    chosen = np.flatnonzero(coefficients)
    factors = torch.from_numpy(coefficients[chosen].astype(np.float32))
    return reduce_columns(
        updates, size, lambda rows: (factors @ torch.from_numpy(rows)).numpy(), chosen
    )


def _width(num_updates: int) -> int:
    # A row whose length is a power of two maps every row to the same cache lines: axis 0 of
    # [100, 4096] takes three times as long to sort as that of [100, 4099]. An odd one never does.
    return _CHUNK_BYTES // (BYTES_PER_PARAMETER * max(1, num_updates)) | 1
