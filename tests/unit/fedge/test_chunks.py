from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.chunks import iter_chunks, join_chunks, join_vector
from fedge.errors import TransportError
from fedge.params import vector_digest


@given(st.binary(max_size=200), st.integers(1, 64))
def test_joining_the_chunks_of_a_content_gives_it_back(content: bytes, size: int) -> None:
    chunks = list(iter_chunks(content, size))
    assert all(len(chunk) <= size for chunk in chunks)
    assert join_chunks(chunks, size_bytes=len(content), limit_bytes=200) == content


def test_empty_content_is_one_empty_chunk() -> None:
    assert list(iter_chunks(b"")) == [b""]


def test_a_size_over_the_limit_is_refused_before_the_first_chunk_is_taken() -> None:
    taken = []

    def chunks() -> Iterator[bytes]:
        taken.append(1)
        yield b"12345678901"

    with pytest.raises(TransportError, match="weights: 11 bytes announced, at most 10"):
        join_chunks(chunks(), size_bytes=11, limit_bytes=10, what="weights")
    assert not taken


def test_more_bytes_than_announced_are_refused_as_soon_as_they_come() -> None:
    taken = []

    def chunks() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield b"12345"

    with pytest.raises(TransportError, match="more bytes came than the 8"):
        join_chunks(chunks(), size_bytes=8, limit_bytes=10)
    assert len(taken) == 2


def test_fewer_bytes_than_announced_are_refused() -> None:
    with pytest.raises(TransportError, match="5 of 8 bytes"):
        join_chunks([b"12345"], size_bytes=8, limit_bytes=10)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=40), st.integers(1, 64))
def test_joining_the_chunks_of_a_vector_gives_it_back_and_its_digest(
    values: list[float], size: int
) -> None:
    vector = np.array(values, np.float32)
    joined, digest = join_vector(iter_chunks(vector, size), size_bytes=vector.nbytes)
    assert joined.tobytes() == vector.tobytes()
    assert digest == vector_digest(vector)


@pytest.mark.parametrize("chunks", [[b"12345"], [b"12345", b"6789"]])
def test_a_vector_of_another_length_than_announced_is_refused(chunks: list[bytes]) -> None:
    with pytest.raises(TransportError, match=r"weights: (more bytes came than the 8|5 of 8)"):
        join_vector(chunks, size_bytes=8, what="refined weights")
