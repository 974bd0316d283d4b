import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from fedge.tflite.copies import Copy

GOOD = Copy("w", 8, (2, 3), (3, 1), 0, (1, 2))


def test_copies_exactly_the_scalars_its_strides_name() -> None:
    words, parameter = np.zeros(12), np.arange(6.0)
    GOOD.file_view(words)[...] = GOOD.source_view(parameter)
    assert words.tolist() == [0, 0, 0, 2, 4, 1, 3, 5, 0, 0, 0, 0]


def test_a_reversed_source_is_read_backwards() -> None:
    copy = Copy("w", 0, (4,), (1,), 3, (-1,))
    copy.check(parameter_size=4, num_words=4)
    assert copy.source_view(np.arange(4.0)).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"offset_bytes": 9}, "not aligned"),
        ({"offset_bytes": -4}, "dimensions"),
        ({"offset_bytes": 28}, "outside the file"),
        ({"dims": (2, 4)}, "outside"),
        ({"dims": (2, 0)}, "dimensions"),
        ({"dims": ()}, "dimensions"),
        ({"file_strides": (3,)}, "rank"),
        ({"file_strides": (3, 0)}, "backwards"),
        ({"file_strides": (3, -1)}, "backwards"),
        ({"source_start": -1}, "dimensions"),
        ({"source_start": 1}, "outside parameter w"),
        ({"source_strides": (-1, 2)}, "outside parameter w"),
        ({"source_strides": (1,)}, "rank"),
    ],
)
def test_out_of_bounds_is_refused(change: dict[str, Any], text: str) -> None:
    GOOD.check(parameter_size=6, num_words=8)
    with pytest.raises(ModelError, match=text):
        dataclasses.replace(GOOD, **change).check(parameter_size=6, num_words=8)


small = st.integers(-3, 9)


@given(
    st.integers(-8, 80),
    st.lists(st.tuples(st.integers(-1, 4), small, small), min_size=1, max_size=3),
    small,
)
def test_what_the_check_allows_stays_inside(
    offset: int, loops: list[tuple[int, int, int]], start: int
) -> None:
    dims, file_strides, source_strides = zip(*loops, strict=True)
    copy = Copy("w", offset, dims, file_strides, start, source_strides)
    try:
        copy.check(parameter_size=12, num_words=20)
    except ModelError:
        return
    for index in np.ndindex(*dims):
        there = offset / 4 + sum(i * s for i, s in zip(index, file_strides, strict=True))
        here = start + sum(i * s for i, s in zip(index, source_strides, strict=True))
        assert there in range(20)
        assert here in range(12)
