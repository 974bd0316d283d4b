"""Partitioners that make clients differ in their labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedge.errors import ConfigError
from fedge.rng import stream
from simulation.partition.dealt import MAX_DRAWS, DealtParts, check_enough, too_few
from simulation.partition.division import PARTITIONERS, Division
from simulation.partition.draws import draw_shares
from simulation.partition.pool import Codes, Pool
from simulation.partition.settings import DataConfig

Owners = npt.NDArray[np.int32]


@PARTITIONERS.register("dirichlet")
class Dirichlet:
    """Deal each label to the clients in proportions drawn from a symmetric Dirichlet.

    This is the per-label deal that most papers and Flower's ``DirichletPartitioner`` mean: sizes
    differ between clients, too. (Hsu, Qi and Brown, arXiv 1909.06335, draw label proportions for
    each client and keep sizes equal: that is ``sampled`` with ``size_sigma = 0``.) A draw that
    leaves a client fewer than ``min_examples`` is drawn again, a hundred times at most.

    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks,
    ICML 2019 (arXiv 1905.12022).
    """

    def __init__(self, config: DataConfig, *, balanced: bool = False) -> None:
        self._alpha = config.alpha
        self._balanced = balanced
        self._min_examples = config.min_examples

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return the first draw in which every client has enough."""
        check_enough(pool, num_clients, self._min_examples)
        by_label = positions_by_label(pool.labels())
        for attempt in range(MAX_DRAWS):
            rng = stream(seed, "partition-dirichlet", round=attempt)
            owners = deal_labels(by_label, num_clients, self._alpha, rng, balanced=self._balanced)
            sizes = np.bincount(owners, minlength=num_clients)
            if sizes.min() >= self._min_examples:
                return Division(DealtParts(owners, num_clients))
        raise too_few(
            sizes,
            self._min_examples,
            pool.where,
            f"{MAX_DRAWS} draws at data.alpha = {self._alpha:g} were in vain; raise data.alpha, "
            "lower data.min_examples or take fewer clients",
        )


@PARTITIONERS.register("dirichlet-balanced")
def balanced_dirichlet(config: DataConfig) -> Dirichlet:
    """Return one that gives who has an even share already none of the labels that follow.

    Source: Li et al., Federated Learning on Non-IID Data Silos (NIID-Bench), ICDE 2022; it is
    ``self_balancing`` in Flower's partitioner.
    """
    return Dirichlet(config, balanced=True)


@PARTITIONERS.register("shards")
class Shards:
    """Sort by label, cut into equal shards, and give each client so many of them at random.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized
    Data, AISTATS 2017, section 3 (two shards a client).
    """

    def __init__(self, config: DataConfig) -> None:
        self._shards_per_client = config.shards_per_client
        self._min_examples = config.min_examples

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return shards; their sizes differ by one at most."""
        num_shards = num_clients * self._shards_per_client
        if num_shards > len(pool):
            raise ConfigError(
                f"{num_clients} clients with {self._shards_per_client} shards each need "
                f"{num_shards} examples; {pool.where} has {len(pool)}: take fewer clients or "
                "lower data.shards_per_client",
                key="num_clients",
            )
        check_enough(pool, num_clients, self._min_examples)
        rng = stream(seed, "partition-shards")
        shuffled = rng.permutation(len(pool))
        order = shuffled[np.argsort(pool.labels()[shuffled], kind="stable")]
        shards = np.arange(len(pool)) * num_shards // len(pool)
        owners = np.empty(len(pool), np.int32)
        owners[order] = rng.permutation(num_shards)[shards] // self._shards_per_client
        sizes = np.bincount(owners, minlength=num_clients)
        if sizes.min() < self._min_examples:
            raise too_few(sizes, self._min_examples, pool.where, "take fewer clients")
        return Division(DealtParts(owners, num_clients))


def positions_by_label(labels: Codes) -> list[npt.NDArray[np.int64]]:
    """Return the positions of each label's examples."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels))[:-1])


def deal_labels(
    by_label: list[npt.NDArray[np.int64]],
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    balanced: bool,
) -> Owners:
    """Return whose each example is after one deal, label by label, ``[N]``."""
    num_examples = sum(map(len, by_label))
    owners = np.empty(num_examples, np.int32)
    sizes = np.zeros(num_clients, np.int64)
    for positions in by_label:
        shares = draw_shares(rng, np.full(num_clients, alpha))
        if balanced:
            shares = without(shares, sizes * num_clients >= num_examples)
        ends = np.rint(np.cumsum(shares) * len(positions)).astype(np.int64)
        ends[-1] = len(positions)
        counts = np.diff(np.minimum(ends, len(positions)), prepend=0)
        owners[rng.permutation(positions)] = np.repeat(np.arange(num_clients), counts)
        sizes += counts
    return owners


def without(
    shares: npt.NDArray[np.float64], full: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return shares among those who are not full; even ones where the rest was to get none."""
    left = np.where(full, 0.0, shares)
    total = left.sum()
    if total > 0:
        left /= total
        return left
    return np.asarray(~full / np.count_nonzero(~full), np.float64)
