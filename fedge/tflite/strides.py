"""Pairs of positions written as one nested strided loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedge.tflite.sentinels import Index


@dataclass(frozen=True)
class Loop:
    """Nested loops, innermost last, over file positions and source positions at once."""

    file_start: int
    source_start: int
    dims: tuple[int, ...]
    file_strides: tuple[int, ...]
    source_strides: tuple[int, ...]


def find_loop(file: Index, source: Index) -> Loop | None:
    """Return the loop that visits exactly these pairs in this order, or None if there is none.

    Args:
        file: ``[N]`` positions in the file, N >= 1.
        source: ``[N]`` positions in the source, pairwise.
    """
    dims: list[int] = []
    file_strides: list[int] = []
    source_strides: list[int] = []
    while len(file) > 1:
        run = _innermost_run(file, source)
        if run == 1:
            return None
        dims.insert(0, run)
        file_strides.insert(0, int(file[1] - file[0]))
        source_strides.insert(0, int(source[1] - source[0]))
        file, source = file[::run], source[::run]
    if not dims:
        dims, file_strides, source_strides = [1], [1], [1]
    return Loop(
        int(file[0]), int(source[0]), tuple(dims), tuple(file_strides), tuple(source_strides)
    )


def _innermost_run(file: Index, source: Index) -> int:
    """Return the longest run, dividing N, in which both positions step evenly; 1 for none."""
    file_steps, source_steps = np.diff(file), np.diff(source)
    uneven = (file_steps != file_steps[0]) | (source_steps != source_steps[0])
    breaks = np.flatnonzero(uneven)
    longest = int(breaks[0]) + 1 if len(breaks) else len(file)
    for run in range(longest, 1, -1):
        if len(file) % run:
            continue
        # Every run steps as the first one does; steps between runs do not count.
        if not uneven[np.arange(len(uneven)) % run != run - 1].any():
            return run
    return 1
