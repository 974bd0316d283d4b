"""The proxy data as a federation: a part to score on, and clients that draw from the rest."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.config import build
from fedge.errors import ConfigError
from fedge.task import Examples
from server.settings import ServerConfig
from server.trainer.proxy_split import split_proxy
from server.tuner.pseudo_clients import draw_clients, proxy_parts


def examples(num: int, *, continuous: bool = False) -> Examples:
    inputs = np.arange(num, dtype=np.float32)[:, None]
    targets = np.arange(num) % 3
    return Examples(inputs, targets.astype(np.float32) / 7 if continuous else targets)


def ids(*parts: Examples) -> list[float]:
    return sorted(value for part in parts for value in part.inputs[:, 0].tolist())


def configure(refine: dict[str, Any] | None = None) -> ServerConfig:
    return build(ServerConfig, {"seed": 7, "tuner": {"holdout": 0.25}, "refine": refine or {}})


@given(
    num=st.integers(1, 60),
    clients=st.integers(1, 8),
    size=st.integers(1, 40),
    alpha=st.sampled_from([0.0, 1e-4, 1e-320, 0.3, 100.0]),
    continuous=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_client_has_distinct_examples_of_those_there_are_and_never_none(
    num: int, clients: int, size: int, alpha: float, continuous: bool, seed: int
) -> None:
    whole = examples(num, continuous=continuous)
    parts = draw_clients(whole, clients, size, alpha, np.random.default_rng(seed))
    assert len(parts) == clients
    for part in parts:
        own = ids(part)
        assert len(set(own)) == len(own)
        assert set(own) <= set(ids(whole))
        assert 1 <= len(own) <= min(size, num)
        if alpha == 0:
            assert len(own) == min(size, num)


def test_a_small_alpha_gives_clients_few_labels_and_zero_gives_them_all() -> None:
    def labels_a_client(alpha: float) -> float:
        parts = draw_clients(examples(300), 6, 50, alpha, np.random.default_rng(1))
        return float(np.mean([len(np.unique(part.targets)) for part in parts]))

    assert labels_a_client(0.01) < 2
    assert labels_a_client(0.0) == 3


@pytest.mark.parametrize("alpha", [0.0, 1.0, 100.0])
def test_all_clients_together_have_the_labels_of_the_data(alpha: float) -> None:
    whole = examples(400)
    whole.targets[:300] = 0  # three quarters have one label
    parts = draw_clients(whole, 400, 20, alpha, np.random.default_rng(2))
    share = np.mean(np.concatenate([part.targets for part in parts]) == 0)
    assert share == pytest.approx(np.mean(whole.targets == 0), abs=0.05)


def test_targets_of_several_numbers_are_drawn_evenly() -> None:
    whole = Examples(np.arange(10.0)[:, None], np.zeros((10, 4)))
    parts = draw_clients(whole, 4, 6, 0.1, np.random.default_rng(0))
    assert list(map(len, parts)) == [6, 6, 6, 6]
    assert len({tuple(ids(part)) for part in parts}) > 1


def test_the_held_out_part_is_disjoint_and_the_same_in_every_round() -> None:
    whole = examples(40)
    fit, held = proxy_parts(whole, configure())
    assert len(held) == 10
    assert ids(fit, held) == ids(whole)
    assert ids(proxy_parts(whole, configure())[1]) == ids(held)


def test_with_refinement_what_it_never_trains_on_is_held_out() -> None:
    whole = examples(40)
    fit, held = proxy_parts(whole, configure({"trainer": "in-process", "held_out": 0.4}))
    trained_on, held_out = split_proxy(whole, 7, 0.4)
    assert (ids(fit), ids(held)) == (ids(trained_on), ids(held_out))


def test_refinement_that_holds_nothing_out_is_refused() -> None:
    tuner = {"sampler": "tpe", "space": {"train.batch_size": [32, 128]}}
    refine = {"trainer": "in-process", "held_out": 0.0, "blends": [1.0]}
    with pytest.raises(ConfigError, match=r"^refine\.held_out: must be above 0 with tuner"):
        build(ServerConfig, {"tuner": tuner, "refine": refine})
    build(ServerConfig, {"tuner": {**tuner, "virtual_rounds": 0}, "refine": refine})


def test_too_little_proxy_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^tuner\.holdout: 1 proxy examples are too few"):
        proxy_parts(examples(1), configure())
    with pytest.raises(ConfigError, match=r"^refine\.held_out: 1 proxy examples are too few"):
        proxy_parts(examples(1), configure({"trainer": "in-process"}))
