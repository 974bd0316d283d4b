"""Values as floats of 32 or 16 bits."""

from __future__ import annotations

import numpy as np

from aggregation.codecs.coders import VALUE_CODERS, little_endian, no_option
from fedge.params import Vector

_CHUNK = 65_536
_F16_LARGEST = np.float32(65504)
_BF16_LARGEST = np.array(0x7F7F0000, np.uint32).view(np.float32)


@VALUE_CODERS.register("f32")
class Float32:
    """Values as they are, bit by bit."""

    unbiased = True

    def __init__(self, option: str = "") -> None:
        no_option(option)

    def num_bytes(self, count: int) -> int:
        """Return four bytes a value."""
        return 4 * count

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        """Return the values' own bytes."""
        return little_endian(values, "<f4")

    def decode(self, payload: memoryview, count: int) -> Vector:
        """Return the values; NaN and infinity are the gate's."""
        return np.frombuffer(payload, "<f4", count).astype(np.float32)


@VALUE_CODERS.register("f16")
class Float16:
    """IEEE half floats, 11 bits of precision.

    Values beyond ±65504 become ±65504. Between 2**-14 and 65504 the error is at most 2**-11 of the
    value, below it at most 2**-25.
    """

    unbiased = False

    def __init__(self, option: str = "") -> None:
        no_option(option)

    def num_bytes(self, count: int) -> int:
        """Return two bytes a value."""
        return 2 * count

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        """Return the values rounded to the nearest half float, ties to even."""
        halves = np.empty(len(values), "<f2")
        for i in range(0, len(values), _CHUNK):
            halves[i : i + _CHUNK] = np.clip(values[i : i + _CHUNK], -_F16_LARGEST, _F16_LARGEST)
        return halves.tobytes()

    def decode(self, payload: memoryview, count: int) -> Vector:
        """Return the values; NaN and infinity are the gate's."""
        return np.frombuffer(payload, "<f2", count).astype(np.float32)


@VALUE_CODERS.register("bf16")
class BFloat16:
    """The upper half of a float32: its range, 8 bits of precision.

    The error is at most 2**-8 of the value, below 2**-126 at most 2**-134. Values beyond the
    largest bfloat16 (3.39e38) become that.
    """

    unbiased = False

    def __init__(self, option: str = "") -> None:
        no_option(option)

    def num_bytes(self, count: int) -> int:
        """Return two bytes a value."""
        return 2 * count

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        """Return the values rounded to the nearest bfloat16, ties to even."""
        halves = np.empty(len(values), "<u2")
        for i in range(0, len(values), _CHUNK):
            chunk = np.clip(values[i : i + _CHUNK], -_BF16_LARGEST, _BF16_LARGEST)
            bits = chunk.view(np.uint32)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            bits += np.uint32(0x7FFF)
            bits += odd
            bits >>= np.uint32(16)
            halves[i : i + _CHUNK] = bits
        return halves.tobytes()

    def decode(self, payload: memoryview, count: int) -> Vector:
        """Return the values; NaN and infinity are the gate's."""
        bits = np.frombuffer(payload, "<u2", count).astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
