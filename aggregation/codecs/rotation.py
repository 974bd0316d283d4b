"""A random rotation of blocks: random signs, then a Hadamard matrix.

A rotation spreads a block's energy evenly over its coordinates, which makes them look normal,
whatever they were, and suits a quantiser that has one scale a block. H_4096 is H_64 kron H_64, so
a block as a 64 x 64 square takes two matrix products. The signs are drawn once a payload, for all
its blocks.

Source: Ailon and Chazelle, Approximate Nearest Neighbors and the Fast Johnson-Lindenstrauss
Transform (2006); Suresh et al., Distributed Mean Estimation with Limited Communication (2017).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

BLOCK = 4096
_LARGEST = np.float32(1e30)


def signs(seed: int) -> npt.NDArray[np.float32]:
    """Return 4096 random signs, ±1, of a 64-bit seed.

    The raw stream of PCG64 is the same in every version of numpy; what a Generator makes of it
    need not be.
    """
    bits = np.random.PCG64(seed).random_raw(BLOCK // 64).astype("<u8").view(np.uint8)
    return np.unpackbits(bits).astype(np.float32) * np.float32(2) - np.float32(1)


def rotate(
    rows: npt.NDArray[np.float32], row_signs: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return rows ``[R, L]``, L a power of two to 4096, rotated by an orthogonal matrix.

    Values beyond ±1e30 become that: a sum of them could overflow, and no update gets there.
    """
    limited = np.clip(rows, -_LARGEST, _LARGEST)
    limited *= row_signs[: rows.shape[1]]
    rotated = hadamard(limited)
    rotated *= np.float32(rows.shape[1] ** -0.5)
    return rotated


def padded(count: int) -> int:
    """Return a length cut into blocks whose last one is filled up to a power of two."""
    whole, tail = divmod(count, BLOCK)
    return whole * BLOCK + (1 << (tail - 1).bit_length() if tail else 0)


def hadamard(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return rows ``[R, L]`` times the L x L Hadamard matrix of ±1, L a power of two to 4096.

    It is its own inverse but for a factor L.
    """
    count, length = rows.shape
    exponent = length.bit_length() - 1
    left, right = 1 << (exponent // 2), 1 << (exponent - exponent // 2)
    squares = rows.reshape(count, left, right)
    if left > 1:
        squares = np.matmul(_matrix(left), squares)
    product: npt.NDArray[np.float32] = np.matmul(squares, _matrix(right))
    return product.reshape(count, length)


@cache
def _matrix(size: int) -> npt.NDArray[np.float32]:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
