"""Partitioners that look at no label."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import ConfigError
from fedge.task import Examples
from simulation.partition.pool import Keys, Pool
from tests.unit.simulation.partition.pools import NUM_OWNERS, all_indices, divide, make_pool


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 300), num_clients=st.integers(1, 20), seed=st.integers(0, 999))
def test_iid_sizes_differ_by_one_at_most(size: int, num_clients: int, seed: int) -> None:
    division = divide("iid", make_pool(size + num_clients), num_clients, seed)
    sizes = [len(index) for index in all_indices(division, num_clients)]
    assert max(sizes) - min(sizes) <= 1


def test_natural_clients_are_whole_owners_in_order() -> None:
    pool = make_pool(500)
    assert pool.keys is not None
    division = divide("natural", pool, NUM_OWNERS)
    for owner in range(NUM_OWNERS):
        expected = np.flatnonzero(pool.keys.codes == owner)
        np.testing.assert_array_equal(division.parts.indices(owner), expected)


def test_of_more_owners_than_clients_the_seed_draws_whole_ones() -> None:
    pool = make_pool(500)
    assert pool.keys is not None
    chosen = []
    for seed in range(20):
        owners = [set(pool.keys.codes[i]) for i in all_indices(divide("natural", pool, 4, seed), 4)]
        assert all(len(each) == 1 for each in owners)
        chosen.append(tuple(each.pop() for each in owners))
        assert sorted(chosen[-1]) == list(chosen[-1])
    assert len(set(chosen)) > 5


def test_owners_with_too_little_are_no_clients() -> None:
    keys = Keys(np.array([0, 1, 1, 1, 2, 2]), ("a", "b", "c"))
    pool = Pool("here", Examples(np.zeros((6, 1)), np.zeros(6)), keys)
    division = divide("natural", pool, 2, min_examples=2)
    assert [list(index) for index in all_indices(division, 2)] == [[1, 2, 3], [4, 5]]
    with pytest.raises(
        ConfigError, match=r"^num_clients: 3 clients.*2 natural.*1 with fewer than 2 left out"
    ):
        divide("natural", pool, 3, min_examples=2)


def test_a_pool_that_does_not_say_whose_it_is_has_no_natural_clients() -> None:
    pool = Pool("here", Examples(np.zeros((6, 1)), np.zeros(6)))
    with pytest.raises(ConfigError, match=r"^data.key: here"):
        divide("natural", pool, 2)


def test_time_windows_follow_one_another() -> None:
    pool = make_pool(103)
    assert pool.times is not None
    indices = all_indices(divide("time-drift", pool, 5), 5)
    assert sorted(map(len, indices)) == [20, 20, 21, 21, 21]
    for earlier, later in pairwise(indices):
        assert pool.times[earlier].max() < pool.times[later].min()


def test_without_times_the_rows_stand_in_the_order_of_time() -> None:
    pool = Pool("here", make_pool(10).examples)
    np.testing.assert_array_equal(divide("time-drift", pool, 2).parts.indices(1), range(5, 10))


def test_sizes_are_log_normal() -> None:
    pool = make_pool(200_000)
    division = divide("quantity", pool, 2000, size_sigma=0.8)
    logs = np.log([division.parts.num_examples(client) for client in range(2000)])
    assert logs.std() == pytest.approx(0.8, rel=0.05)
    assert np.mean((logs - logs.mean()) ** 3) == pytest.approx(0, abs=0.1)


def test_without_spread_sizes_are_equal() -> None:
    division = divide("quantity", make_pool(100), 7, size_sigma=0.0)
    sizes = [len(index) for index in all_indices(division, 7)]
    assert max(sizes) - min(sizes) <= 1
