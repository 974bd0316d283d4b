"""Where the noise and the Poisson draws of a device come from.

Every draw is a float64 uniform in [0, 1) and what follows from it. Private draws read each
uniform from the operating system: torch's CPU generator would keep 32 bits of a seed, which can
be tried out one by one. Gaussian noise is made in float64 and then rounded to float32; the
attacks on the low bits of floating-point noise (Mironov 2012) are not defended against.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MANTISSA_BITS = 53
_BYTES_PER_DRAW = 8


@dataclass(frozen=True)
class Draws:
    """A source of randomness for one reservation; `secure` or `seeded` makes one.

    Attributes:
        uniform: returns so many float64 uniforms in [0, 1), never the same twice.
        private: whether nobody can repeat the draws; without it a result is not private.
        gaussian: a faster source of float32 normals for draws that are not private; None makes
            float64 ones of uniforms.
    """

    uniform: Callable[[int], Tensor]
    private: bool
    gaussian: Callable[[int], Tensor] | None = None

    @staticmethod
    def secure() -> Draws:
        """Return draws from the operating system's entropy."""
        return Draws(_system_uniform, private=True)

    @staticmethod
    def seeded(seed: int) -> Draws:
        """Return draws that repeat: for tests, simulation and training without DP.

        Normals are drawn in float32, which is four times as fast: in a simulation of DP-SGD on a
        small model they would be half of the time.
        """
        generator = torch.Generator().manual_seed(seed)
        return Draws(
            lambda size: torch.rand(size, generator=generator, dtype=torch.float64),
            private=False,
            gaussian=lambda size: torch.randn(size, generator=generator),
        )

    def normal(self, size: int) -> Tensor:
        """Return independent standard normals, ``[size]``; private ones are float64."""
        if self.gaussian is not None:
            return self.gaussian(size)
        half = (size + 1) // 2
        # 1 - u is in (0, 1], whose logarithm is finite.
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(half)))
        angle = 2.0 * math.pi * self.uniform(half)
        return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)))[:size]

    def poisson_batch(self, num_examples: int, sampling_rate: float) -> Tensor:
        """Return the positions of a batch that each example joins with this probability."""
        return torch.nonzero(self.uniform(num_examples) < sampling_rate).flatten()

    def permutation(self, size: int) -> Tensor:
        """Return the numbers below size in random order."""
        return torch.argsort(self.uniform(size))

    def seed(self) -> int:
        """Return a seed for a library that draws by itself (dropout); no noise comes of it."""
        return seed_of(self.uniform(1).item())


def seed_of(uniform: float) -> int:
    """Return the seed that a uniform in [0, 1) stands for."""
    return int(uniform * (1 << _MANTISSA_BITS))


def _system_uniform(size: int) -> Tensor:
    words = np.frombuffer(os.urandom(size * _BYTES_PER_DRAW), np.uint64)
    return torch.from_numpy((words >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS)
