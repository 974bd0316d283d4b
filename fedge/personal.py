"""Personal layers: parameters that each client trains and keeps to itself.

Source: Arivazhagan et al. 2019, arXiv:1912.00818 (FedPer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from fedge.params import Layout, Vector

PERSONAL_KEY = "train.personal_layers"
"""Where the patterns stand in the server's configuration."""

_NAMES_SHOWN = 20

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class PersonalPart:
    """The personal tensors of a layout; every other one is shared.

    Attributes:
        names: of the personal tensors, in the layout's order.
    """

    layout: Layout
    names: tuple[str, ...]

    def take(self, vector: Vector) -> Tensors:
        """Return copies of a vector's personal tensors, by name."""
        views = self.layout.views(vector)
        return {name: views[name].copy() for name in self.names}

    def put(self, vector: Vector, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Vector:
        """Return a copy of a vector with these personal tensors in it."""
        changed = vector.copy()
        views = self.layout.views(changed)
        for name in self.names:
            views[name][...] = tensors[name]
        return changed

    def without(self, vector: Vector) -> Vector:
        """Return a copy of a vector that is zero on the personal tensors."""
        changed = vector.copy()
        views = self.layout.views(changed)
        for name in self.names:
            views[name][...] = 0
        return changed

    def fits(self, tensors: object) -> bool:
        """Tell whether these are the personal tensors, by name, dtype and shape."""
        if not isinstance(tensors, dict) or tensors.keys() != set(self.names):
            return False
        shapes = dict(zip(self.layout.names, self.layout.shapes, strict=True))
        return all(
            isinstance(tensor, np.ndarray)
            and tensor.dtype == np.float32
            and tensor.shape == shapes[name]
            for name, tensor in tensors.items()
        )


def personal_part(layout: Layout, patterns: tuple[str, ...]) -> PersonalPart | None:
    """Return what of a layout is personal; None where there are no patterns.

    Args:
        patterns: of tensor names, such as ``head.*``; upper and lower case differ.

    Raises:
        ConfigError: a pattern matches no tensor, or nothing would be shared.
    """
    return _matched(layout, patterns) if patterns else None


@lru_cache(maxsize=8)
def _matched(layout: Layout, patterns: tuple[str, ...]) -> PersonalPart:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layout.names):
            raise ConfigError(
                f"{pattern!r} matches no parameter of the model, which has {_said(layout.names)}",
                key=PERSONAL_KEY,
            )
    names = tuple(
        name for name in layout.names if any(fnmatchcase(name, pattern) for pattern in patterns)
    )
    if len(names) == len(layout.names):
        raise ConfigError(
            f"{list(patterns)} match every parameter of the model ({_said(names)}): nothing would "
            "be learnt together",
            key=PERSONAL_KEY,
        )
    return PersonalPart(layout, names)


def _said(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
