"""charlm over random characters: a model of any size, and data that need no file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedge.rng import stream
from fedge.task import CloudData, Examples
from fedge.tasks.charlm import CharLm


@dataclass(frozen=True)
class RandomText(CharLm):
    """As `CharLm`, its cloud's shares drawn from the seed."""

    num_proxy: int = 256

    name = "random-text"

    def cloud_data(self) -> CloudData:
        """Return windows of random characters; gate and test are a few of them."""
        shape = (self.num_proxy, self.context + 1)
        codes = stream(self.seed, "random-text").integers(0, len(self.alphabet), shape)
        proxy = Examples(codes[:, :-1].copy(), codes[:, 1:].copy())
        few = proxy.subset(np.arange(2))
        return CloudData(proxy=proxy, gate=few, test=few)
