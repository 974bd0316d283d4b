"""Draws a client: repeatable in any order, and as good as independent."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.devices.hashing import ClientDraws

CLIENTS = np.arange(200_000)


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=30),
    st.integers(0, 10**6),
    st.randoms(use_true_random=False),
)
def test_a_client_gets_the_same_in_any_company_and_order(
    seed: int, ids: list[int], round: int, random: Random
) -> None:
    draws, again = ClientDraws(seed), ClientDraws(seed)
    all_of_them = dict(zip(ids, draws.uniform("x", np.array(ids), round), strict=True))
    shuffled = random.sample(ids, random.randint(1, len(ids)))
    drawn = again.uniform("x", np.array(shuffled), round)
    assert drawn.tolist() == [all_of_them[client] for client in shuffled]
    by_round = again.uniform("x", np.array(shuffled), np.full(len(shuffled), round))
    assert by_round.tolist() == drawn.tolist()


def test_values_are_the_same_on_every_machine() -> None:
    drawn = ClientDraws(7).uniform("speed", np.array([0, 1, 10**9]), 3)
    assert drawn.tolist() == [0.2710224796234101, 0.46391957745122137, 0.1618746596085755]


def test_uniforms_fill_the_open_interval_evenly() -> None:
    drawn = ClientDraws(1).uniform("x", CLIENTS)
    assert 0 < drawn.min() < drawn.max() < 1
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    expected = len(CLIENTS) / 100
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi², 99 degrees: p = 0.0007
    assert drawn.var() == pytest.approx(1 / 12, rel=0.01)
    assert len(np.unique(drawn)) == len(drawn)


def test_normals_have_mean_0_and_variance_1() -> None:
    drawn = ClientDraws(1).normal("x", CLIENTS)
    assert abs(drawn.mean()) < 4 / np.sqrt(len(CLIENTS))
    assert drawn.var() == pytest.approx(1, abs=0.015)
    assert (np.abs(drawn) > 1.96).mean() == pytest.approx(0.05, abs=0.003)


def test_purposes_rounds_seeds_and_neighbours_are_independent() -> None:
    draws = ClientDraws(1)
    first = draws.uniform("x", CLIENTS, 1)
    others = [
        draws.uniform("y", CLIENTS, 1),
        draws.uniform("x", CLIENTS, 2),
        ClientDraws(2).uniform("x", CLIENTS, 1),
        np.roll(first, 1),
        draws.uniform("x", CLIENTS, np.full(len(CLIENTS), 2)),
    ]
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 4.5 / np.sqrt(len(CLIENTS))


def test_a_round_each_gives_what_that_round_gives_alone() -> None:
    draws = ClientDraws(1)
    rounds = CLIENTS[:1000] % 3 - 1
    drawn = draws.uniform("x", CLIENTS[:1000], rounds)
    for round in (-1, 0, 1):
        chosen = rounds == round
        alone = draws.uniform("x", CLIENTS[:1000][chosen], round)
        np.testing.assert_array_equal(drawn[chosen], alone)


def test_choices_come_in_the_given_fractions() -> None:
    fractions = np.array([0.5, 0.0, 0.2, 0.3])
    chosen = ClientDraws(1).choice("x", CLIENTS, fractions)
    shares = np.bincount(chosen, minlength=4) / len(CLIENTS)
    np.testing.assert_allclose(shares, fractions, atol=0.005)
    assert shares[1] == 0
    assert not ClientDraws(1).choice("x", CLIENTS[:5], np.array([1.0])).any()
