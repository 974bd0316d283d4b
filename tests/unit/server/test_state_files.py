from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedge.errors import CheckpointError
from server.state_files import pack_state, unpack_state

SCALARS = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=5)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64]), hnp.array_shapes(min_dims=0, min_side=0)
)
STATES = st.recursive(
    SCALARS | st.floats(allow_nan=False) | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right
        assert type(left) is type(right)


@given(STATES)
def test_any_nested_state_comes_back_as_it_was(state: Any) -> None:
    assert_same(state, unpack_state(*pack_state(state)))


def test_numpy_scalars_become_plain_numbers() -> None:
    assert unpack_state(*pack_state({"step": np.int64(3)})) == {"step": 3}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"a": {"b": object()}}, r"state\.a\.b is a object"),
        ({"a": [np.array([{}], dtype=object)]}, r"state\.a\[0\] is an array of Python objects"),
        ({1: 2}, "keys must be text"),
        ({"__array__": 0}, "__array__"),
    ],
)
def test_what_cannot_be_kept_is_named(state: Any, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        pack_state(state)


def test_bytes_that_are_no_array_file_are_refused() -> None:
    with pytest.raises(ValueError, match="not an array file"):
        unpack_state({"__array__": "0"}, b"PK\x03\x04 nonsense")
