"""Virtual partitions: clients draw with replacement, so that there can be any number of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.rng import stream
from simulation.partition.by_label import positions_by_label
from simulation.partition.division import PARTITIONERS, Division, Index
from simulation.partition.draws import draw_shares, draw_size
from simulation.partition.pool import Pool
from simulation.partition.settings import DataConfig


class DrawnParts:
    """A client's size, label proportions and examples come from its own stream when asked.

    Args:
        config: mean and spread of the sizes, alpha.
        by_label: positions of the examples of each label.
    """

    def __init__(
        self, config: DataConfig, seed: int, by_label: list[npt.NDArray[np.int64]]
    ) -> None:
        self._config = config
        self._seed = seed
        self._counts = np.array([len(positions) for positions in by_label])
        self._starts = np.cumsum(self._counts) - self._counts
        self._order = np.concatenate(by_label)
        # The mean of a client's proportions is that of the pool.
        self._alphas = config.alpha * len(by_label) * self._counts / self._counts.sum()

    def num_examples(self, client: int) -> int:
        """Return how many examples a client has."""
        return self._size(self._stream(client))

    def indices(self, client: int) -> Index:
        """Return the positions of a client's examples; some may come twice."""
        rng = self._stream(client)
        size = self._size(rng)
        counts = self._counts
        if len(counts) > 1:
            shares = draw_shares(rng, self._alphas)
            labels = np.repeat(np.arange(len(counts)), rng.multinomial(size, shares))
        else:
            labels = np.zeros(size, np.int64)
        inside = (rng.random(size) * counts[labels]).astype(np.int64)
        found: Index = self._order[self._starts[labels] + inside]
        return found

    def _stream(self, client: int) -> np.random.Generator:
        return stream(self._seed, "partition-sampled", client=client)

    def _size(self, rng: np.random.Generator) -> int:
        config = self._config
        return draw_size(rng, config.mean_examples, config.size_sigma, config.min_examples)


@PARTITIONERS.register("sampled")
class Sampled:
    """Let each client draw label proportions and then its examples with replacement.

    Proportions are Dirichlet with concentration ``alpha`` a label, times how common the label is
    (all equally common: symmetric). A million clients cost nothing until they are asked.

    Source: Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification, arXiv 1909.06335 (they draw without replacement).
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return clients that differ in their labels."""
        del num_clients
        return Division(DrawnParts(self._config, seed, positions_by_label(pool.labels())))


@PARTITIONERS.register("sampled-iid")
class SampledIid:
    """Let each client draw its examples with replacement from all there are."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return clients that differ in their sizes only."""
        del num_clients
        return Division(DrawnParts(self._config, seed, [np.arange(len(pool))]))
