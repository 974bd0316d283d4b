"""EDEN: 1 to 4 bits a value after a rotation, with the scale that keeps it unbiased."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aggregation.codecs.coders import GRIDS
from fedge.errors import ConfigError

# Centroids >= 0 of the standard normal in units of 1/512 (a ten-thousandth of its variance away
# from Lloyd and Max's own), so that levels are whole numbers.
_UNIT = 512
_CENTROIDS = {
    1: (409,),
    2: (232, 773),
    3: (125, 387, 688, 1102),
    4: (66, 199, 336, 482, 643, 828, 1059, 1399),
}
_SMALLEST = np.float32(2.0**-100)


@GRIDS.register("eden")
class EdenGrid:
    """The centroids of a normal distribution; `eden:1` is DRIVE, signs and one scale.

    A row's scale is its energy over its product with the chosen levels. Under a uniformly random
    rotation that is unbiased; a Hadamard rotation only comes close, so it is not called unbiased.

    Source: Vargaftik et al., DRIVE (2021) and EDEN (2022); Max, Quantizing for Minimum Distortion
    (1960).
    """

    unbiased = False
    needs_rotation = True
    lowest_code = 0

    def __init__(self, option: str) -> None:
        if option not in ("1", "2", "3", "4"):
            raise ConfigError(f"eden takes 1 to 4 bits, as in eden:1, got {option!r}")
        self.width = int(option)
        positive = np.array(_CENTROIDS[self.width], np.float32)
        self._levels = np.concatenate([-positive[::-1], positive])
        self._bounds = (self._levels[1:] + self._levels[:-1]) / np.float32(2 * _UNIT)
        self.largest = int(positive[-1])

    def quantize(
        self,
        rows: npt.NDArray[np.float32],
        rng: np.random.Generator,  # noqa: ARG002
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Return the nearest centroids' numbers ``[R, L]`` and scales ``[R]``."""
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        empty = largest < _SMALLEST
        units = rows * (np.float32(1) / np.where(empty, np.float32(1), largest))[:, np.newaxis]
        energies = np.einsum("rl,rl->r", units, units)
        deviations = np.sqrt(energies / np.float32(rows.shape[1]))[:, np.newaxis]
        codes = np.zeros(rows.shape, np.uint8)
        for bound in self._bounds:
            codes += units > bound * deviations
        products = np.einsum("rl,rl->r", units, self.levels(codes))
        scales = np.zeros(len(rows), np.float32)
        np.divide(energies * largest, products, out=scales, where=~empty)
        return codes, scales

    def levels(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the centroids in units of 1/512 of the standard deviation."""
        return self._levels[codes]
