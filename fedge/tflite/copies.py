"""One strided copy between a parameter and the words of a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError
from fedge.params import BYTES_PER_PARAMETER

_MAX_DIMS = 8


@dataclass(frozen=True)
class Copy:
    """One strided copy; for every index m: ``file[offset/4 + m·file] = source[start + m·source]``.

    Attributes:
        offset_bytes: where the first scalar stands in the file; a multiple of 4.
        dims: how often each nested loop runs.
        file_strides, source_strides: steps in scalars; the file's are positive.
        source_start: index of the first scalar in the flattened parameter.
    """

    parameter: str
    offset_bytes: int
    dims: tuple[int, ...]
    file_strides: tuple[int, ...]
    source_start: int
    source_strides: tuple[int, ...]

    @property
    def num_scalars(self) -> int:
        """Scalars that this copies."""
        return math.prod(self.dims)

    def file_view(self, words: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the file's scalars that this writes, as a view of its 4-byte words."""
        return _strided(
            words, self.offset_bytes // BYTES_PER_PARAMETER, self.dims, self.file_strides
        )

    def source_view(self, parameter: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the scalars that this reads, as a view of the flattened parameter."""
        return _strided(parameter, self.source_start, self.dims, self.source_strides)

    def check(self, parameter_size: int, num_words: int) -> None:
        """Refuse a copy that reads or writes out of bounds.

        Raises:
            ModelError: with the parameter.
        """
        rank = len(self.dims)
        whole = (self.offset_bytes, self.source_start, *self.dims)
        if not 1 <= rank <= _MAX_DIMS or any(dim < 1 for dim in self.dims) or min(whole) < 0:
            raise ModelError(f"plan: a copy of {self.parameter} has dimensions {self.dims}")
        if len(self.file_strides) != rank or len(self.source_strides) != rank:
            raise ModelError(f"plan: a copy of {self.parameter} has strides of another rank")
        if any(stride < 1 for stride in self.file_strides):
            raise ModelError(f"plan: a copy of {self.parameter} steps backwards in the file")
        if self.offset_bytes % BYTES_PER_PARAMETER:
            raise ModelError(
                f"plan: a copy of {self.parameter} is not aligned: byte {self.offset_bytes}"
            )
        reach = [(dim - 1) * step for dim, step in zip(self.dims, self.file_strides, strict=True)]
        if self.offset_bytes // BYTES_PER_PARAMETER + sum(reach) >= num_words:
            raise ModelError(f"plan: a copy of {self.parameter} ends outside the file")
        reach = [(dim - 1) * step for dim, step in zip(self.dims, self.source_strides, strict=True)]
        first = self.source_start + sum(step for step in reach if step < 0)
        last = self.source_start + sum(step for step in reach if step > 0)
        if first < 0 or last >= parameter_size:
            raise ModelError(f"plan: a copy reads outside parameter {self.parameter}")

    @staticmethod
    def from_tree(data: Mapping[str, Any]) -> Copy:
        """Read what `dataclasses.asdict` made of a copy; values may be out of bounds."""
        return Copy(
            parameter=str(data["parameter"]),
            offset_bytes=int(data["offset_bytes"]),
            dims=tuple(map(int, data["dims"])),
            file_strides=tuple(map(int, data["file_strides"])),
            source_start=int(data["source_start"]),
            source_strides=tuple(map(int, data["source_strides"])),
        )


def _strided(
    flat: npt.NDArray[Any], start: int, dims: tuple[int, ...], strides: tuple[int, ...]
) -> npt.NDArray[Any]:
    """View scalars of a flat array; the caller has checked the bounds."""
    steps = tuple(stride * flat.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(flat[start:], dims, steps)
