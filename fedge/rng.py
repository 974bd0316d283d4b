"""Named random streams for everything that must repeat.

A stream is derived from (seed, purpose, round, client), so that the draw of one client never
depends on the order in which others drew. What must *not* repeat (a device's DP noise and its
Poisson draws) never comes from here: see `fedge.privacy.noise`.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed for one purpose, for libraries that seed themselves by an int."""
    text = f"fedge:{seed}:{purpose}:{round}:{client}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return a fresh numpy generator for one purpose."""
    return np.random.default_rng(stream_seed(seed, purpose, round=round, client=client))
