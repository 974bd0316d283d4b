"""Weights as a difference: the same bits come back, or nothing does."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from fedge.weight_delta import decode_delta, encode_delta
from tests.unit.fedge.tflite.helpers import flip_bit

WORDS = st.integers(0, 2**32 - 1)


@given(st.lists(st.tuples(WORDS, WORDS), max_size=64))
def test_any_bits_come_back_as_they_were(pairs: list[tuple[int, int]]) -> None:
    parent, weights = (np.array([pair[side] for pair in pairs], "<u4").tobytes() for side in (0, 1))
    assert decode_delta(encode_delta(parent, weights), parent) == weights


def test_values_that_compare_equal_or_not_at_all_keep_their_bits() -> None:
    parent = np.array([0.0, -0.0, np.nan, np.inf, 1e-45, -1e-45], "<f4").tobytes()
    weights = np.array([-0.0, 0.0, np.inf, -np.nan, -1e-45, 1e-45], "<f4").tobytes()
    assert decode_delta(encode_delta(parent, weights), parent) == weights


def test_a_small_step_takes_fewer_bytes_than_the_weights() -> None:
    rng = np.random.default_rng(0)
    parent = rng.normal(0, 0.1, 50_000).astype("<f4")
    weights = (parent * (1 + rng.normal(0, 1e-4, 50_000))).astype("<f4")
    assert len(encode_delta(parent.tobytes(), weights.tobytes())) < 0.5 * weights.nbytes
    assert len(encode_delta(parent.tobytes(), parent.tobytes())) < 0.02 * weights.nbytes


def test_weights_of_many_pieces_come_back_and_one_byte_more_or_less_does_not() -> None:
    words = np.random.default_rng(2).integers(0, 2**32, (2, 100_003), np.uint32)
    parent, weights = words.astype("<u4")
    content = encode_delta(parent.tobytes(), weights.tobytes())
    assert decode_delta(content, parent.tobytes()) == weights.tobytes()
    plain = zlib.decompress(content)
    for other in (plain[:-1], plain + b"x"):
        with pytest.raises(ModelError, match="size of the version before"):
            decode_delta(zlib.compress(other, 0), parent.tobytes())
    with pytest.raises(ModelError, match="size of the version before"):
        decode_delta(content + bytes(300_000), parent.tobytes())


def test_what_is_longer_or_shorter_than_the_parent_is_refused_before_it_is_unpacked() -> None:
    parent = bytes(4000)
    bomb = zlib.compress(bytes(200_000_000), 9)
    for content in (bomb, zlib.compress(bytes(3996)), zlib.compress(bytes(4004)), b""):
        with pytest.raises(ModelError, match="size of the version before"):
            decode_delta(content, parent)
    with pytest.raises(ModelError, match="size of the version before"):
        decode_delta(encode_delta(parent, parent) + b"x", parent)
    with pytest.raises(ModelError, match="cannot be read"):
        decode_delta(b"not zlib at all", parent)


def test_damage_is_an_error_or_other_weights_but_never_anything_else() -> None:
    rng = np.random.default_rng(1)
    parent, weights = (rng.normal(size=300).astype("<f4").tobytes() for _ in range(2))
    content = encode_delta(parent, weights)
    for bit in rng.integers(8 * len(content), size=200):
        try:
            found = decode_delta(flip_bit(content, int(bit)), parent)
        except ModelError:
            continue
        assert len(found) == len(parent)
