"""The proxy data as a federation: nothing is lost, nothing is in two places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ConfigError
from fedge.task import Examples
from server.tuner.pseudo_clients import deal, split_proxy


def examples(num: int, *, continuous: bool = False) -> Examples:
    inputs = np.arange(num, dtype=np.float32)[:, None]
    targets = np.arange(num) % 3
    return Examples(inputs, targets.astype(np.float32) / 7 if continuous else targets)


def ids(*parts: Examples) -> list[float]:
    return sorted(value for part in parts for value in part.inputs[:, 0].tolist())


@given(
    num=st.integers(2, 60),
    clients=st.integers(1, 8),
    alpha=st.sampled_from([0.0, 1e-4, 0.3, 100.0]),
    continuous=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_example_has_one_client_and_no_client_is_empty(
    num: int, clients: int, alpha: float, continuous: bool, seed: int
) -> None:
    whole = examples(num, continuous=continuous)
    parts = deal(whole, clients, alpha, np.random.default_rng(seed))
    assert ids(*parts) == ids(whole)
    assert 1 <= len(parts) <= clients
    assert all(len(part) for part in parts)


def test_a_small_alpha_gives_clients_few_labels_and_zero_gives_them_all() -> None:
    def labels_a_client(alpha: float) -> float:
        parts = deal(examples(300), 6, alpha, np.random.default_rng(1))
        return float(np.mean([len(np.unique(part.targets)) for part in parts]))

    assert labels_a_client(0.01) < 2
    assert labels_a_client(0.0) == 3


def test_targets_of_several_numbers_are_dealt_evenly() -> None:
    whole = Examples(np.arange(10.0)[:, None], np.zeros((10, 4)))
    parts = deal(whole, 4, 0.1, np.random.default_rng(0))
    assert sorted(map(len, parts)) == [2, 2, 3, 3]


def test_the_held_out_part_is_disjoint_and_the_same_for_the_same_seed() -> None:
    whole = examples(40)
    fit, held = split_proxy(whole, 0.25, 7)
    assert len(held) == 10
    assert ids(fit, held) == ids(whole)
    assert ids(split_proxy(whole, 0.25, 7)[1]) == ids(held)
    assert ids(split_proxy(whole, 0.25, 8)[1]) != ids(held)


def test_too_little_proxy_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^tuner\.holdout: leaves 1 proxy examples"):
        split_proxy(examples(1), 0.25, 0)
