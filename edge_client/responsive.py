"""Keeps the daemon's own Python from standing in the way of a prediction."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL_S = 0.00002


def be_responsive() -> None:
    """Shorten what a prediction may wait for within this process; call it once all is imported.

    A thread that wants the interpreter's lock waits for so long before it asks for it (Python's
    own value is 250 times that). What is there by now is never garbage, so that the collector
    need not walk through it.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
