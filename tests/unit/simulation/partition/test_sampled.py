"""Clients that draw with replacement: any number of them, and none before it is asked."""

import tracemalloc

import numpy as np
import pytest

from simulation.partition.settings import DataConfig
from simulation.partition.task import PartitionedTask
from tests.unit.simulation.partition.pools import PoolTask, divide, make_pool

MILLION = 1_000_000
MIB = 2**20


@pytest.mark.parametrize("name", ["sampled", "sampled-iid"])
def test_a_million_clients_cost_nothing(name: str) -> None:
    config = DataConfig(source="task", partitioner=name)
    tracemalloc.start()
    try:
        task = PartitionedTask(config, PoolTask(), MILLION, 0)
        sizes = [len(task.client_data(client, MILLION)) for client in (0, 777, MILLION - 1)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MIB
    assert min(sizes) >= 1


def test_a_million_dealt_clients_take_memory_as_the_data_do() -> None:
    pool = make_pool(MILLION + 5)
    tracemalloc.start()
    try:
        division = divide("iid", pool, MILLION)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 24 * MIB  # 4 bytes an example, 16 a client
    assert peak < 80 * MIB
    assert division.parts.num_examples(MILLION - 1) == 1


def test_the_number_of_clients_changes_nobodys_examples() -> None:
    pool = make_pool(100)
    few, many = (divide("sampled", pool, number).parts for number in (10, MILLION))
    np.testing.assert_array_equal(few.indices(9), many.indices(9))


def test_labels_are_as_common_as_in_the_pool_on_average() -> None:
    labels = np.repeat([0, 1, 2], [700, 250, 50])
    pool = make_pool(1000)
    pool.examples.targets[:] = np.random.default_rng(0).permutation(labels)
    parts = divide("sampled", pool, 2000, alpha=0.5, size_sigma=0.0, mean_examples=20).parts
    drawn = np.concatenate([pool.labels()[parts.indices(client)] for client in range(2000)])
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), [0.7, 0.25, 0.05], atol=0.03)


def test_every_example_of_a_label_is_drawn_equally_often() -> None:
    pool = make_pool(50)
    parts = divide("sampled-iid", pool, 2000, size_sigma=0.0, mean_examples=50).parts
    drawn = np.bincount(np.concatenate([parts.indices(c) for c in range(2000)]), minlength=50)
    # Binomial: 2000 expected, standard deviation 44.
    assert np.abs(drawn - 2000).max() < 5 * 44.3


def test_sizes_have_the_mean_and_spread_that_were_asked_for() -> None:
    parts = divide("sampled", make_pool(50), 4000, mean_examples=200, size_sigma=0.5).parts
    sizes = np.array([parts.num_examples(client) for client in range(4000)])
    assert sizes.mean() == pytest.approx(200, rel=0.04)
    assert np.log(sizes).std() == pytest.approx(0.5, rel=0.05)


def test_no_size_is_below_the_least() -> None:
    parts = divide("sampled", make_pool(50), 500, mean_examples=10, min_examples=8).parts
    assert min(parts.num_examples(client) for client in range(500)) == 8
