"""How a worker process deals with memory that is asked for and given back all the time."""

from __future__ import annotations

import ctypes
import gc
import sys

_TRIM_THRESHOLD = -1  # of glibc's mallopt
_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
_LARGEST_IN_HEAP_BYTES = 32 << 20
_MAX_YOUNG_OBJECTS = 50_000


def keep_memory() -> None:
    """Let this process keep freed memory for the next clients, and seldom look for garbage.

    A chunk's tensors of a few megabytes would go back to the system when it ends, and every page
    be cleared again for the next chunk. A run makes thousands of objects that all end with it; to
    look for cycles among them, and among all that was imported, took a tenth of the time of small
    models.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_MAX_YOUNG_OBJECTS)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl does not
        if mallopt is not None:
            mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
            mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP_BYTES)
