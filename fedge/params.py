"""Model parameters as one flat float32 vector and the layout that names its parts.

A vector is a contiguous 1-D float32 array of length ``layout.size``. Names and shapes live in
the layout alone, so that aggregation, clipping and codecs run at memory speed on one buffer.
To and from torch: `fedge.weights`; to and from Flower: `fedge.records`. A device that only
predicts has neither.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedge.errors import TaskError, UpdateRejected

DTYPE_NAME = "float32"
Vector = npt.NDArray[np.float32]
BYTES_PER_PARAMETER = 4


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's tensors, in ``state_dict`` order.

    Attributes:
        names: one unique name a tensor.
        shapes: one shape a tensor; ``()`` is a scalar.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what could not be told apart later."""
        if len(self.names) != len(self.shapes):
            raise TaskError(f"layout: {len(self.names)} names but {len(self.shapes)} shapes")
        if len(set(self.names)) != len(self.names):
            raise TaskError("layout: a tensor name stands twice")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if not isinstance(name, str):
                raise TaskError(f"layout: a tensor's name is {name!r}, not text")
            if any(type(dim) is not int or dim < 0 for dim in shape):
                raise TaskError(f"layout: {name} has a dimension that is no size: {shape}")

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of scalars of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins in the vector, and the total length last."""
        ends = [0]
        for size in self.sizes:
            ends.append(ends[-1] + size)
        return tuple(ends)

    @property
    def size(self) -> int:
        """Length of a vector of this layout."""
        return self.offsets[-1]

    @property
    def size_bytes(self) -> int:
        """Bytes of a vector of this layout."""
        return self.size * BYTES_PER_PARAMETER

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of names and shapes: two layouts are equal when it is."""
        text = json.dumps([self.names, self.shapes], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Return names and shapes as JSON text, read back by `from_json`."""
        return json.dumps({"names": self.names, "shapes": self.shapes})

    @staticmethod
    def from_json(text: str) -> Layout:
        """Read what `to_json` wrote.

        Raises:
            TaskError: it is not a layout.
        """
        try:
            data = json.loads(text)
            return Layout(tuple(data["names"]), tuple(tuple(shape) for shape in data["shapes"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise TaskError(f"not a model layout: {error!r:.200}") from error

    def check(self, vector: Vector) -> Vector:
        """Return the vector, or refuse one that is not flat float32 of this length.

        Raises:
            UpdateRejected: reason ``dtype`` or ``shape``.
        """
        if vector.dtype != np.float32:
            raise UpdateRejected("dtype", expected=DTYPE_NAME, got=vector.dtype)
        if vector.shape != (self.size,):
            raise UpdateRejected("shape", expected=(self.size,), got=vector.shape)
        return np.ascontiguousarray(vector)

    def views(self, vector: Vector) -> dict[str, npt.NDArray[np.float32]]:
        """Return each tensor as a view into the vector, by name, without a copy."""
        vector = self.check(vector)
        return {
            name: vector[start : start + size].reshape(shape)
            for name, shape, start, size in zip(
                self.names, self.shapes, self.offsets, self.sizes, strict=False
            )
        }

    def flatten(self, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Vector:
        """Copy named arrays into one new vector.

        Raises:
            UpdateRejected: a name is missing or unexpected, a shape or dtype differs.
        """
        check_names(self.names, tensors.keys())
        vector = np.empty(self.size, np.float32)
        for name, view in self.views(vector).items():
            tensor = tensors[name]
            if tensor.dtype != np.float32:
                raise UpdateRejected("dtype", tensor=name, expected=DTYPE_NAME, got=tensor.dtype)
            if tensor.shape != view.shape:
                raise UpdateRejected("shape", tensor=name, expected=view.shape, got=tensor.shape)
            view[...] = tensor
        return vector


def check_names(expected: tuple[str, ...], found: Iterable[str]) -> None:
    """Refuse a set of tensor names that lacks one or has one too many.

    Raises:
        UpdateRejected: reason ``names``, with the first such tensor.
    """
    names = set(found)
    missing = [name for name in expected if name not in names]
    if missing:
        raise UpdateRejected("names", tensor=missing[0], expected="present", got="missing")
    extra = sorted(names - set(expected))
    if extra:
        raise UpdateRejected("names", tensor=extra[0], expected="no such tensor", got="present")


def vector_digest(vector: Vector) -> str:
    """Return the SHA-256 (hex) of a vector's bytes: the name of a parent version."""
    return hashlib.sha256(np.ascontiguousarray(vector).data).hexdigest()
