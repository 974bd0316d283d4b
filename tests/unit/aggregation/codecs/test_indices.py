from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation.codecs import indices
from fedge.errors import UpdateRejected
from tests.unit.aggregation.codecs.oracles import elias_fano


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[int], int]:
    size = draw(st.integers(1, 2000))
    chosen = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=60))
    return sorted(chosen), size


@given(choices())
def test_bytes_are_those_of_a_plain_coder(choice: tuple[list[int], int]) -> None:
    chosen, size = choice
    coded = indices.encode(np.array(chosen, np.int64), size)
    assert coded == elias_fano(chosen, size)
    assert len(coded) == indices.num_bytes(size, len(chosen))


@given(choices())
def test_what_was_coded_is_read_back(choice: tuple[list[int], int]) -> None:
    chosen, size = choice
    coded = indices.encode(np.array(chosen, np.int64), size)
    assert indices.decode(memoryview(coded), size, len(chosen)).tolist() == chosen


@given(choices(), st.randoms(use_true_random=False))
def test_any_bytes_are_indices_in_order_or_refused(
    choice: tuple[list[int], int], random: Random
) -> None:
    chosen, size = choice
    coded = bytearray(indices.encode(np.array(chosen, np.int64), size))
    for _ in range(2):
        coded[random.randrange(len(coded))] ^= 1 << random.randrange(8)
    try:
        decoded = indices.decode(memoryview(coded), size, len(chosen)).tolist()
    except UpdateRejected as error:
        reason = error.reason
        decoded = []
    assert decoded or reason == "payload"
    if not decoded:
        return
    assert decoded == sorted(set(decoded))
    assert 0 <= decoded[0] <= decoded[-1] < size
    assert indices.encode(np.array(decoded, np.int64), size) == bytes(coded)


def test_equal_indices_are_refused() -> None:
    # Index 1 of 8, twice: both low parts 1, both high parts 0 (width 2).
    coded = bytes([0b11000000, 0b00000000, 0b11000000])
    assert len(coded) == indices.num_bytes(8, 2)
    with pytest.raises(UpdateRejected, match="increasing"):
        indices.decode(memoryview(coded), 8, 2)


def test_an_index_behind_the_end_is_refused() -> None:
    # One index below 5: width 2, largest high part 1. High 1, low 3 is 7.
    coded = bytes([0b10000000, 0b10000000, 0b01000000])
    with pytest.raises(UpdateRejected, match="below 5"):
        indices.decode(memoryview(coded), 5, 1)


@pytest.mark.parametrize(("share", "bits"), [(0.05, 6.3), (0.01, 8.6)])
def test_an_index_costs_little_more_than_its_entropy(share: float, bits: float) -> None:
    size = 1_000_000
    assert 8 * indices.num_bytes(size, int(share * size)) / (share * size) <= bits


def test_no_index_takes_no_byte() -> None:
    assert indices.encode(np.empty(0, np.int64), 10) == b""
    assert indices.decode(memoryview(b""), 10, 0).tolist() == []
