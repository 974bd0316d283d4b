"""Whole numbers with stochastic rounding: unbiased, and never off by more than one step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aggregation.codecs.coders import GRIDS, no_option

# A block whose largest value is below it is written as zeros: its scale would be subnormal.
_SMALLEST = np.float32(2.0**-100)


class StochasticGrid:
    """Levels -q..q, q = 2**(width - 1) - 1; a row's largest magnitude is level q.

    A value between two levels goes up with the probability that keeps its expectation, to within
    2**-16 of a step (16 random bits decide). Rows whose values are all below 2**-100 become zero.

    Source: Alistarh et al., QSGD (2017).
    """

    unbiased = True
    needs_rotation = False
    lowest_code = 1

    def __init__(self, width: int) -> None:
        self.width = width
        self.largest = 2 ** (width - 1) - 1
        self._zero = np.uint8(self.largest + 1)

    def quantize(
        self, rows: npt.NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Return codes ``[R, L]``, level + q + 1, and scales ``[R]``, the width of a step."""
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        scales = np.where(largest < _SMALLEST, np.float32(0), largest / np.float32(self.largest))
        with np.errstate(divide="ignore"):
            inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
        steps = rows * inverse[:, np.newaxis]
        # Added to the noise first, so that what is floored is positive: a cast does it.
        steps += np.float32(self._zero)
        steps += _uniform(rows.shape, rng)
        # Rounding may lift a row's largest value above its level. Limited before the cast: of 8
        # bits the next level is 256, whose byte is 0, the largest value turned around.
        np.clip(steps, 1, 2 * self.largest + 1, out=steps)
        codes = steps.astype(np.uint8)
        return codes, scales.astype(np.float32, copy=False)

    def levels(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return code - q - 1."""
        return np.subtract(codes, np.float32(self._zero), dtype=np.float32)


def _uniform(shape: tuple[int, ...], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return uniform values in (0, 1) of 16 bits, centred: four of each draw of 64 bits."""
    size = int(np.prod(shape))
    words = rng.integers(0, 2**64 - 1, size=-(-size // 4), dtype=np.uint64, endpoint=True)
    values = words.view(np.uint16)[:size].reshape(shape).astype(np.float32)
    values += np.float32(0.5)
    values *= np.float32(2**-16)
    return values


@GRIDS.register("int8")
def int8(option: str = "") -> StochasticGrid:
    """Return the grid of 255 levels."""
    no_option(option)
    return StochasticGrid(8)


@GRIDS.register("int4")
def int4(option: str = "") -> StochasticGrid:
    """Return the grid of 15 levels."""
    no_option(option)
    return StochasticGrid(4)
