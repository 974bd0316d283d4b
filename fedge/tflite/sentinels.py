"""Sentinel weights: every scalar of a model gets a float32 of its own, found again anywhere.

A converter permutes, slices and splits weights as it likes. Converted with sentinels, each float
of each constant says which scalar it is. What says nothing was computed from several scalars.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError
from fedge.params import Vector

Index = npt.NDArray[np.int64]

_MANTISSA_BITS = 23
# The first mantissas of each exponent are left out: round numbers that graphs contain anyway.
_RESERVED = 4096
_PER_CODE = (1 << _MANTISSA_BITS) - _RESERVED
_FIRST_EXPONENT = 126  # 0.5; the codes are ±[0.5, 8)
_NUM_CODES = 8
MAX_SCALARS = _PER_CODE * _NUM_CODES


class Sentinels:
    """One assignment of distinct values to the scalars of a vector.

    Attributes:
        weights: the vector to convert with.
    """

    def __init__(self, num_scalars: int, seed: int) -> None:
        if num_scalars > MAX_SCALARS:
            raise ModelError(
                f"the model has {num_scalars} scalars; templates are made for {MAX_SCALARS} at most"
            )
        order = np.random.default_rng(seed).permutation(num_scalars)
        self.weights = _encode(order)
        self._scalar_of = np.empty(num_scalars, np.int64)
        self._scalar_of[order] = np.arange(num_scalars)

    def find(self, values: npt.NDArray[np.float32]) -> Index:
        """Return which scalar each value is, -1 for none."""
        codes = _decode(values)
        valid = (codes >= 0) & (codes < len(self._scalar_of))
        if not len(self._scalar_of):
            return np.full(values.shape, -1, np.int64)
        return np.where(valid, self._scalar_of[np.where(valid, codes, 0)], -1)


def _encode(numbers: Index) -> Vector:
    code, mantissa = np.divmod(numbers, _PER_CODE)
    sign, exponent = code & 1, _FIRST_EXPONENT + (code >> 1)
    bits = (sign << 31) | (exponent << _MANTISSA_BITS) | (mantissa + _RESERVED)
    values: Vector = bits.astype(np.uint32).view(np.float32)
    return values


def _decode(values: npt.NDArray[np.float32]) -> Index:
    bits = values.view(np.uint32).astype(np.int64)
    mantissa = (bits & ((1 << _MANTISSA_BITS) - 1)) - _RESERVED
    exponent = ((bits >> _MANTISSA_BITS) & 0xFF) - _FIRST_EXPONENT
    numbers = ((exponent << 1) | (bits >> 31)) * _PER_CODE + mantissa
    numbers[(exponent < 0) | (exponent >= _NUM_CODES // 2) | (mantissa < 0)] = -1
    return numbers
