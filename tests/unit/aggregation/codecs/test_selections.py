from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.codecs.selections import largest, parse_fraction, random_subset
from fedge.errors import ConfigError
from fedge.params import Vector
from tests.unit.aggregation.codecs.oracles import finite, heavy_tailed, topk

few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])
nonempty = hnp.arrays(np.float32, st.integers(1, 200), elements=finite | few_values)


@given(nonempty, st.data())
def test_largest_are_those_that_a_sort_finds(values: Vector, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    assert largest(values, count).tolist() == topk(values.tolist(), count)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["heavy", "sorted", "mostly zero", "constant", "periodic"])
def test_a_long_vectors_largest_are_those_that_a_sort_finds(kind: str, share: float) -> None:
    size = 300_000
    values = {
        "heavy": heavy_tailed(size),
        "sorted": np.sort(heavy_tailed(size)),
        "mostly zero": np.where(np.arange(size) % 1000 == 3, heavy_tailed(size), 0),
        "constant": np.ones(size),
        # What the sample sees is larger than all the rest.
        "periodic": np.where(np.arange(size) % 4 == 0, 10 + heavy_tailed(size), 1),
    }[kind].astype(np.float32)
    count = int(share * size)
    expected = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    assert np.array_equal(largest(values, count), expected)


@given(st.integers(0, 2**64 - 1), st.integers(1, 500), st.data())
def test_a_random_subset_has_its_size_and_an_order(
    seed: int, size: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    chosen = random_subset(seed, size, count).tolist()
    assert chosen == sorted(set(chosen)) == random_subset(seed, size, count).tolist()
    assert len(chosen) == count
    assert 0 <= chosen[0] <= chosen[-1] < size


@pytest.mark.parametrize("count", [3, 8])
def test_every_coordinate_is_as_likely(count: int) -> None:
    num_draws, size = 20_000, 10
    hits = np.zeros(size)
    for seed in range(num_draws):
        hits[random_subset(seed, size, count)] += 1
    share = count / size
    sigma = np.sqrt(num_draws * share * (1 - share))
    assert np.abs(hits - num_draws * share).max() <= 5 * sigma


def test_a_random_subset_is_the_same_on_every_machine() -> None:
    # Pinned: what one machine encodes, another of another year must decode.
    assert random_subset(7, 1000, 8).tolist() == [5, 225, 300, 625, 775, 821, 873, 897]
    assert random_subset(7, 10, 8).tolist() == [0, 1, 2, 3, 4, 5, 7, 9]


@pytest.mark.parametrize(("text", "share"), [("0.05", 0.05), (".5", 0.5), ("1", 1.0), ("1.0", 1)])
def test_a_share_is_a_plain_decimal(text: str, share: float) -> None:
    assert parse_fraction(text) == share


@pytest.mark.parametrize("text", ["", "0", "0.0", "1.1", "-0.5", "nan", "1e-3", "0_1", " 1", "5%"])
def test_anything_else_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match=r"share in \(0, 1\]"):
        parse_fraction(text)
