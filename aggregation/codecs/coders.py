"""What a codec is put together from: coders of values, and selections of coordinates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from fedge.naming import Registry
from fedge.params import Vector

Indices = npt.NDArray[np.int64]


class ValueCoder(Protocol):
    """Writes a vector of known length as bytes, and reads it back."""

    @property
    def unbiased(self) -> bool:
        """Tell whether the decoded values' expectation is the values."""
        ...

    def num_bytes(self, count: int) -> int:
        """Return the exact length of what `encode` writes for that many values."""
        ...

    def encode(self, values: Vector, rng: np.random.Generator) -> bytes:
        """Return the values' bytes; finite values stay finite."""
        ...

    def decode(self, payload: memoryview, count: int) -> Vector:
        """Return a new vector; the payload's length is right already.

        Raises:
            UpdateRejected: reason ``payload``: no encoder writes such bytes.
        """
        ...


class Selection(Protocol):
    """Chooses the k coordinates that travel, k fixed by the vector's length."""

    def num_kept(self, size: int) -> int:
        """Return k; 0 only for an empty vector."""
        ...

    def num_bytes(self, size: int) -> int:
        """Return the exact length of a written choice."""
        ...

    def select(self, values: Vector, rng: np.random.Generator) -> tuple[Indices, bytes]:
        """Return the k coordinates in increasing order, and the choice as bytes."""
        ...

    def decode(self, payload: memoryview, size: int) -> Indices:
        """Return the k coordinates in increasing order, each within the vector.

        Raises:
            UpdateRejected: reason ``payload``: no encoder writes such bytes.
        """
        ...


class Grid(Protocol):
    """Rounds rows of values to levels that a few bits name: value = level x scale of the row.

    Levels are whole numbers below 2**11, so that float32 adds up 4096 of them exactly, in any
    order: what is decoded is the same bits on every machine, whatever its matrix product does.

    Attributes:
        width: bits a code.
        largest: largest level.
        lowest_code: smallest code that an encoder writes.
        needs_rotation: whether it suits nothing but rotated rows.
    """

    width: int
    largest: int
    lowest_code: int
    unbiased: bool
    needs_rotation: bool

    def quantize(
        self, rows: npt.NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Return codes ``[R, L]`` and scales ``[R]``, >= 0, for rows ``[R, L]``."""
        ...

    def levels(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the level of each code, in a new array."""
        ...


def no_option(option: str) -> None:
    """Refuse an option of a stage that takes none.

    Raises:
        ConfigError: there is one.
    """
    if option:
        raise ConfigError(f"this stage takes no option, got {option!r}")


def little_endian(values: npt.NDArray[Any], dtype: str) -> bytes:
    """Return the values' bytes in a little-endian type of that name, such as ``<f4``."""
    return values.astype(dtype, copy=False).tobytes()


SELECTIONS: Registry[Callable[[str], Selection]] = Registry("sparsification stage")
VALUE_CODERS: Registry[Callable[[str], ValueCoder]] = Registry("value stage")
GRIDS: Registry[Callable[[str], Grid]] = Registry("quantisation stage")
