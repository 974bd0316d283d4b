"""Small pools, and what can be counted in a division."""

from typing import Any

import numpy as np

from fedge.task import Examples
from simulation.partition.division import Division
from simulation.partition.methods import make_partitioner
from simulation.partition.pool import Keys, Pool
from simulation.partition.settings import DataConfig
from tests.tiny_task import TinyTask

NUM_LABELS = 5
NUM_OWNERS = 12


def make_pool(size: int, seed: int = 0, num_labels: int = NUM_LABELS) -> Pool:
    """Return a pool whose example i has the input [i, 1] and a random label, owner and time."""
    rng = np.random.default_rng(seed)
    inputs = np.stack([np.arange(size), np.ones(size)], axis=1).astype(np.float32)
    owners = Keys(rng.integers(NUM_OWNERS, size=size), tuple(map(str, range(NUM_OWNERS))))
    labels = rng.integers(num_labels, size=size)
    return Pool("the test's pool", Examples(inputs, labels), owners, rng.random(size))


def divide(
    partitioner: str, pool: Pool, num_clients: int, seed: int = 0, **options: Any
) -> Division:
    config = DataConfig(source="task", partitioner=partitioner, **options)
    return make_partitioner(config).divide(pool, num_clients, seed)


def all_indices(division: Division, num_clients: int) -> list[np.ndarray[Any, Any]]:
    return [division.parts.indices(client) for client in range(num_clients)]


def label_distance(division: Division, pool: Pool, num_clients: int) -> float:
    """Return the mean total variation distance of clients' labels from all labels."""
    labels = pool.labels()
    num_labels = labels.max() + 1
    everybody = np.bincount(labels, minlength=num_labels) / len(pool)
    distances = []
    for index in all_indices(division, num_clients):
        own = np.bincount(labels[index], minlength=num_labels) / len(index)
        distances.append(np.abs(own - everybody).sum() / 2)
    return float(np.mean(distances))


class PoolTask(TinyTask):
    """A task of which one client has everything: the inputs of `make_pool`."""

    name = "pooled"
    input_shape = (2,)
    num_pool = 60

    def client_data(self, client: int, num_clients: int) -> Examples:
        assert (client, num_clients) == (0, 1)
        return make_pool(self.num_pool).examples


class GroupTask(PoolTask):
    """A task with natural clients: client i has i + 1 examples of label i."""

    num_clients = 6

    def client_data(self, client: int, num_clients: int) -> Examples:
        size = client + 1
        return Examples(np.full((size, 2), client, np.float32), np.full(size, client))
