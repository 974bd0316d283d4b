"""Laws that hold for every partitioner."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import ConfigError
from simulation.partition.methods import make_partitioner, partitioner_names
from simulation.partition.settings import DataConfig
from tests.unit.simulation.partition.pools import all_indices, divide, make_pool

COVERING = (
    "dirichlet",
    "dirichlet-balanced",
    "feature-shift",
    "iid",
    "quantity",
    "shards",
    "time-drift",
)
WITH_REPLACEMENT = ("sampled", "sampled-iid")


def test_these_are_all_the_partitioners() -> None:
    assert set(partitioner_names()) == {*COVERING, *WITH_REPLACEMENT, "natural"}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(COVERING),
    num_clients=st.integers(1, 12),
    spare=st.integers(0, 200),
    seed=st.integers(0, 2**40),
    alpha=st.floats(0.3, 100),
    sigma=st.floats(0, 3),
)
def test_a_partition_gives_every_example_to_one_client(
    name: str, num_clients: int, spare: int, seed: int, alpha: float, sigma: float
) -> None:
    pool = make_pool(20 * num_clients + spare, seed % 1000)
    division = divide(name, pool, num_clients, seed, alpha=alpha, size_sigma=sigma)
    indices = all_indices(division, num_clients)
    np.testing.assert_array_equal(np.sort(np.concatenate(indices)), np.arange(len(pool)))
    assert all(len(index) >= 1 for index in indices)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*COVERING, *WITH_REPLACEMENT, "natural"]),
    num_clients=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_the_same_seed_gives_the_same_whatever_the_order_of_asking(
    name: str, num_clients: int, seed: int
) -> None:
    pool = make_pool(400)
    first, second = (divide(name, pool, num_clients, seed) for _ in range(2))
    for client in reversed(range(num_clients)):
        index = second.parts.indices(client)
        np.testing.assert_array_equal(first.parts.indices(client), index)
        assert first.parts.num_examples(client) == second.parts.num_examples(client) == len(index)
        seen = [d.view(client, pool.examples.subset(index)).inputs for d in (first, second)]
        np.testing.assert_array_equal(seen[0], seen[1])


@pytest.mark.parametrize("name", sorted({*COVERING, *WITH_REPLACEMENT} - {"time-drift"}))
def test_another_seed_gives_another_division(name: str) -> None:
    pool = make_pool(200)
    first, second = (divide(name, pool, 4, seed) for seed in (0, 1))
    assert any(
        not np.array_equal(*pair)
        for pair in zip(all_indices(first, 4), all_indices(second, 4), strict=True)
    )


@pytest.mark.parametrize("name", COVERING)
def test_a_clients_positions_are_a_view_of_few_bytes(name: str) -> None:
    division = divide(name, make_pool(200), 4)
    index = division.parts.indices(2)
    assert index.dtype == np.int32
    assert index.base is not None
    assert not index.flags.writeable


@pytest.mark.parametrize("name", COVERING)
def test_more_clients_than_examples_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^num_clients: .*(11|22).*10 *examples|has 10"):
        divide(name, make_pool(10), 11)


@pytest.mark.parametrize("name", sorted({*COVERING} - {"dirichlet", "dirichlet-balanced"}))
def test_every_client_has_the_fewest_that_are_allowed(name: str) -> None:
    division = divide(name, make_pool(203), 20, min_examples=10)
    assert min(map(len, all_indices(division, 20))) >= 10


def test_a_partitioner_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data.partitioner: .*iid.*got 'dirichelt'"):
        make_partitioner(DataConfig(source="task", partitioner="dirichelt"))


def test_a_source_without_a_partitioner_is_dealt_evenly() -> None:
    division = make_partitioner(DataConfig(source="task")).divide(make_pool(20), 3, 0)
    assert sorted(map(len, all_indices(division, 3))) == [6, 7, 7]
