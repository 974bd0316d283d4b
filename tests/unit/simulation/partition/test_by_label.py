"""Label skew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import ConfigError
from fedge.task import Examples
from simulation.partition.pool import Pool
from tests.unit.simulation.partition.pools import all_indices, divide, label_distance, make_pool


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet-balanced", "sampled"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_alpha_turns_from_one_label_a_client_to_iid(name: str, seed: int) -> None:
    pool = make_pool(5000)
    options = {"mean_examples": 500, "size_sigma": 0.0}
    skewed, middle, even = (
        label_distance(divide(name, pool, 10, seed, alpha=alpha, **options), pool, 10)
        for alpha in (0.05, 0.5, 1e6)
    )
    assert even < 0.1 < middle < skewed
    assert skewed > 0.5


def test_a_symmetric_dirichlet_gives_each_label_its_share_on_average() -> None:
    # The variance of one entry of Dir(α·1_K) is (K - 1) / (K² (Kα + 1)).
    pool = make_pool(100_000, num_labels=2)
    num_clients, alpha, draws = 10, 0.7, 200
    labels = pool.labels()
    shares = []
    for seed in range(draws // 10):
        parts = divide("dirichlet", pool, num_clients, seed, alpha=alpha).parts
        for label in (0, 1):
            counts = [np.count_nonzero(labels[parts.indices(c)] == label) for c in range(10)]
            shares += [count / np.count_nonzero(labels == label) for count in counts]
    expected = (num_clients - 1) / (num_clients**2 * (num_clients * alpha + 1))
    assert np.mean(shares) == pytest.approx(0.1)
    assert np.var(shares) == pytest.approx(expected, rel=0.25)


def test_balancing_keeps_sizes_closer_together() -> None:
    pool = make_pool(2000, num_labels=10)

    def spread(name: str) -> float:
        sizes = [
            [len(index) for index in all_indices(divide(name, pool, 10, seed, alpha=0.3), 10)]
            for seed in range(10)
        ]
        return float(np.std(sizes))

    assert spread("dirichlet-balanced") < 0.8 * spread("dirichlet")


def test_a_draw_that_leaves_a_client_too_little_is_drawn_again() -> None:
    pool = make_pool(300)
    division = divide("dirichlet", pool, 10, alpha=0.3, min_examples=10)
    assert min(map(len, all_indices(division, 10))) >= 10


def test_when_all_draws_are_in_vain_the_poorest_client_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"^data.min_examples: client \d+ gets .*expected 9 or more.*alpha"
    ):
        divide("dirichlet", make_pool(200), 20, alpha=0.05, min_examples=9)


def test_an_alpha_that_is_almost_nothing_still_divides() -> None:
    division = divide("dirichlet", make_pool(50, num_labels=3), 1, alpha=1e-300)
    assert len(division.parts.indices(0)) == 50
    sampled = divide("sampled", make_pool(50), 3, alpha=1e-300)
    assert len(np.unique(make_pool(50).labels()[sampled.parts.indices(2)])) == 1


@settings(max_examples=30, deadline=None)
@given(num_clients=st.integers(1, 10), per_client=st.integers(1, 4), seed=st.integers(0, 999))
def test_shards_are_equal_and_hold_few_labels(num_clients: int, per_client: int, seed: int) -> None:
    num_shards = num_clients * per_client
    pool = make_pool(num_shards * 30, seed)
    division = divide("shards", pool, num_clients, seed, shards_per_client=per_client)
    labels = pool.labels()
    ordered = np.sort(labels)
    shards = {tuple(ordered[start : start + 30]) for start in range(0, len(pool), 30)}
    widest = max(len(set(shard)) for shard in shards)
    for index in all_indices(division, num_clients):
        assert len(index) == 30 * per_client
        assert len(set(labels[index])) <= per_client * widest


def test_labels_need_neither_start_at_0_nor_be_without_gaps() -> None:
    targets = np.array([7, -3, 7, 100, -3])
    pool = Pool("here", Examples(np.zeros((5, 1), np.float32), targets))
    np.testing.assert_array_equal(pool.labels(), [1, 0, 1, 2, 0])
    whole = Pool("here", Examples(np.zeros((5, 1), np.float32), targets.astype(np.float32)))
    np.testing.assert_array_equal(whole.labels(), pool.labels())


@pytest.mark.parametrize("name", ["dirichlet", "dirichlet-balanced", "shards", "sampled"])
@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (np.array([1.0, 2.0, 0.5, 0.25]), r"row 2 \(counted from 0\) has the target 0.5"),
        (np.zeros((4, 3)), r"targets of shape \(3,\)"),
    ],
)
def test_targets_that_are_no_labels_are_refused(name: str, targets: np.ndarray, text: str) -> None:
    pool = Pool("here", Examples(np.zeros((4, 1), np.float32), targets))
    with pytest.raises(ConfigError, match=f"here.*{text}"):
        divide(name, pool, 1, shards_per_client=1)
