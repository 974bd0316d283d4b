"""Plain loops that say what the codecs should do, and what the tests share."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedge.params import Layout, Vector

SPECS = (
    "raw",
    "f32",
    "f16",
    "bf16",
    "int8",
    "int4",
    "rotate+int8",
    "rotate+int4",
    "rotate+eden:1",
    "rotate+eden:2",
    "rotate+eden:3",
    "rotate+eden:4",
    "signs:0.5",
    "topk:0.05+f16",
    "topk:0.3+int8",
    "topk:1+f32",
    "topk:0.01+rotate+eden:2",
    "randomk:0.1+bf16",
    "randomk:0.75+int4",
    "randomk:0.2+rotate+int8",
    "topk:0.05+int8+signs:0.5",
    "randomk:0.1+f16+signs:1",
)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
usual = st.floats(-4, 4, width=32, allow_subnormal=False)
deltas = hnp.arrays(np.float32, st.integers(0, 300), elements=finite | st.just(0.0))
usual_deltas = hnp.arrays(np.float32, st.integers(1, 300), elements=usual)


def layout_of(size: int) -> Layout:
    return Layout(("weight",), ((size,),))


def heavy_tailed(size: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


def elias_fano(indices: Sequence[int], size: int) -> bytes:
    """Code increasing indices bit by bit, in strings of 0 and 1."""
    count = len(indices)
    if count == 0:
        return b""
    width = math.floor(math.log2(size // count))
    if width == 8:
        low = bytes(index & 255 for index in indices)
    else:
        planes = ["".join(str(index >> j & 1) for index in indices) for j in range(width)]
        low = b"".join(to_bytes(plane) for plane in planes)
    unary = ""
    for index in indices:
        high = index >> width
        unary += "0" * (high - unary.count("0")) + "1"
    unary += "0" * (count + ((size - 1) >> width) + 1 - len(unary))
    return low + to_bytes(unary)


def to_bytes(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def decode_int8(payload: bytes, count: int) -> list[float]:
    """Read an int8 payload value by value: scales, then codes with 128 for zero."""
    num_blocks = math.ceil(count / 4096)
    scales = struct.unpack(f"<{num_blocks}f", payload[: 4 * num_blocks])
    codes = payload[4 * num_blocks :]
    return [(codes[i] - 128) * scales[i // 4096] for i in range(count)]


def topk(values: Sequence[float], count: int) -> list[int]:
    """Sort all places by magnitude, the first of equals first."""
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    return sorted(order[:count])
