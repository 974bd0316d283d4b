from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedge.rng import stream, stream_seed


def draw(client: int) -> list[float]:
    return list(stream(3, "shuffle", round=2, client=client).random(4))


def test_a_clients_stream_does_not_depend_on_who_drew_before() -> None:
    forward = {client: draw(client) for client in range(20)}
    backward = {client: draw(client) for client in reversed(range(20))}
    assert forward == backward
    assert len({tuple(values) for values in forward.values()}) == 20


def test_every_part_of_the_name_makes_another_stream() -> None:
    seeds = {
        stream_seed(3, "shuffle", round=2, client=1),
        stream_seed(4, "shuffle", round=2, client=1),
        stream_seed(3, "select", round=2, client=1),
        stream_seed(3, "shuffle", round=1, client=2),
        stream_seed(3, "shuffle", round=2),
        stream_seed(3, "shuffle"),
        stream_seed(32, "shuffle", round=1),
    }
    assert len(seeds) == 7


def test_the_global_generator_is_left_alone() -> None:
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    draw(1)
    assert np.random.random() == expected


def test_a_seed_of_today_is_the_seed_of_tomorrow() -> None:
    assert stream_seed(0, "init") == 557128446423215883
    assert stream(0, "init").integers(2**32) == stream(0, "init").integers(2**32)


@given(st.integers(0, 2**64), st.text(), st.integers(0, 2**40), st.integers(0, 2**64))
def test_seeds_fit_63_bits(seed: int, purpose: str, round: int, client: int) -> None:
    assert 0 <= stream_seed(seed, "x" + purpose.encode().hex(), round=round, client=client) < 2**63
