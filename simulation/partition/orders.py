"""Partitioners that look at no label: IID, by owner, by time, by size."""

from __future__ import annotations

import numpy as np

from fedge.errors import ConfigError
from fedge.rng import stream
from simulation.partition.dealt import NOBODY, DealtParts, check_enough
from simulation.partition.division import PARTITIONERS, Division
from simulation.partition.pool import Pool
from simulation.partition.settings import DataConfig


@PARTITIONERS.register("iid")
class Iid:
    """Deal shuffled examples evenly; sizes differ by one at most."""

    def __init__(self, config: DataConfig) -> None:
        self._min_examples = config.min_examples

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return an even deal."""
        check_enough(pool, num_clients, self._min_examples)
        places = stream(seed, "partition-iid").permutation(len(pool))
        return Division(DealtParts(places % num_clients, num_clients))


@PARTITIONERS.register("natural")
class Natural:
    """Make every owner a client: a person, a machine, a place.

    Owners with fewer than ``min_examples`` are left out. Where there are more owners than clients,
    the seed draws which of them take part; nobody's examples are split or put together.
    """

    def __init__(self, config: DataConfig) -> None:
        self._min_examples = config.min_examples

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return whole owners, in the order of their keys."""
        if pool.keys is None:
            raise ConfigError(
                f"{pool.where} does not say whose an example is; name the column in data.key",
                key="data.key",
            )
        sizes = np.bincount(pool.keys.codes, minlength=len(pool.keys.names))
        owners = np.flatnonzero(sizes >= self._min_examples)
        if num_clients > len(owners):
            small = len(sizes) - len(owners)
            left_out = f" ({small} with fewer than {self._min_examples} left out)" if small else ""
            raise ConfigError(
                f"{num_clients} clients, but {pool.where} has {len(owners)} natural ones"
                f"{left_out}; take at most so many clients",
                key="num_clients",
            )
        rng = stream(seed, "partition-natural")
        chosen = np.sort(rng.choice(owners, num_clients, replace=False))
        client_of = np.full(len(sizes), NOBODY, np.int64)
        client_of[chosen] = np.arange(num_clients)
        return Division(DealtParts(client_of[pool.keys.codes], num_clients))


@PARTITIONERS.register("time-drift")
class TimeDrift:
    """Give each client one window of time: the first client the oldest, the last the newest.

    Windows hold equally many examples, to one. Without a time column the order of the rows is
    taken as that of time. Whatever drifts with time then differs between clients.
    """

    def __init__(self, config: DataConfig) -> None:
        self._min_examples = config.min_examples

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return consecutive windows; nothing is drawn at random."""
        del seed
        check_enough(pool, num_clients, self._min_examples)
        order = np.arange(len(pool))
        if pool.times is not None:
            order = np.argsort(pool.times, kind="stable")
        owners = np.empty(len(pool), np.int64)
        owners[order] = np.arange(len(pool)) * num_clients // len(pool)
        return Division(DealtParts(owners, num_clients))


@PARTITIONERS.register("quantity")
class Quantity:
    """Deal shuffled examples so that sizes follow a log-normal distribution.

    Everybody gets ``min_examples`` first; the rest is dealt in proportion to exp(σ z), z normal.
    """

    def __init__(self, config: DataConfig) -> None:
        self._sigma = config.size_sigma
        self._min_examples = config.min_examples

    def divide(self, pool: Pool, num_clients: int, seed: int) -> Division:
        """Return a deal in which few have much and many have little."""
        check_enough(pool, num_clients, self._min_examples)
        rng = stream(seed, "partition-quantity")
        logs = self._sigma * rng.standard_normal(num_clients)
        weights = np.exp(logs - logs.max())  # the largest is 1: none overflows
        spare = len(pool) - num_clients * self._min_examples
        ends = np.rint(np.cumsum(weights) / weights.sum() * spare).astype(np.int64)
        sizes = np.diff(ends, prepend=0) + self._min_examples
        owners = np.repeat(np.arange(num_clients), sizes)
        return Division(DealtParts(rng.permutation(owners), num_clients))
