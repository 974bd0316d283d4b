import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_client.stored_reply import encode_stored_reply, read_memory, read_update
from fedge.messages import EncodedUpdate, RoundKey

KEY = RoundKey("run", 1, "parent", "hyper")
UPDATE = EncodedUpdate(1, "parent", "layout", "raw", b"\x00\n\xff", 64.0, 1.5)

any_array = st.sampled_from(["<f4", "<f8", "<i8", "|u1", ">f4"]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
any_memory = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | any_array,
    lambda inner: st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=6,
).map(lambda value: {"value": value})


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, np.ndarray):
        little = left.astype(left.dtype.newbyteorder("<"))
        form = (little.dtype, little.shape, little.tobytes())
        return form == (right.dtype, right.shape, right.tobytes())
    return type(left) is type(right) and bool(left == right)


@given(st.binary(max_size=200), st.none() | st.floats(0, 100), st.text(max_size=20), any_memory)
def test_reply_and_memory_come_back_byte_for_byte(
    payload: bytes, epsilon: float | None, run_name: str, memory: dict[str, Any]
) -> None:
    key = RoundKey(run_name, 3, "p", "h", "int8")
    update = EncodedUpdate(3, "p", "l", "int8", payload, 8.0, epsilon, 5.0, 0.25)
    content = encode_stored_reply(key, update, memory)
    assert read_update(io.BytesIO(content), key) == update
    assert same(memory, read_memory(io.BytesIO(content), run_name))


@given(st.binary(max_size=300))
def test_random_bytes_are_damaged(content: bytes) -> None:
    with pytest.raises(ValueError, match="does not match its hash"):
        read_update(io.BytesIO(content), KEY)
    with pytest.raises(ValueError, match="does not match its hash"):
        read_memory(io.BytesIO(content), "run")


@pytest.mark.parametrize("length", [0, 10, 64, 65, 100, -1])
def test_a_file_that_was_cut_off_is_damaged(length: int) -> None:
    content = encode_stored_reply(KEY, UPDATE, {"residual": np.ones(4, np.float32)})[:length]
    with pytest.raises(ValueError, match="does not match its hash"):
        read_memory(io.BytesIO(content), "run")


@pytest.mark.parametrize("value", [object(), np.array(["text"]), np.array([None]), b"bytes"])
def test_what_cannot_be_written_without_pickle_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be remembered"):
        encode_stored_reply(KEY, UPDATE, {"value": value})
