from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_client.array_columns import empty_rows, pack, unpack
from fedge.errors import InvalidSample

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False)))
def test_finite_float32_comes_back_bit_for_bit(array: Any) -> None:
    if not np.isfinite(array).all():
        with pytest.raises(InvalidSample, match="NaN or infinite"):
            pack(array, "input")
        return
    found = unpack(pack(array, "input").values)
    assert found is not None
    assert found.dtype == np.float32
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32, np.uint32, np.int64])
def test_whole_numbers_are_kept_as_int64(dtype: Any) -> None:
    found = unpack(pack(np.array([0, 1], dtype), "target").values)
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == [0, 1]


@pytest.mark.parametrize(
    "values",
    [
        np.nan,
        [1.0, np.inf],
        1e39,
        np.array(2**63, np.uint64),
        "3",
        [[1], [2, 3]],
        None,
        np.datetime64("2026-01-01"),
        1 + 2j,
    ],
)
def test_what_is_not_a_finite_number_is_refused(values: Any) -> None:
    with pytest.raises(InvalidSample, match="sample 'a'"):
        pack(values, "sample 'a'")


@given(st.integers(0, 8 * 40 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    dtype, shape, content, crc = pack(np.arange(10, dtype=np.float32), "input").values
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    assert unpack((dtype, shape, bytes(damaged), crc)) is None


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float64", "[2]"), ("float32", "[3]"), ("float32", "{"), ("float32", "2,")],
)
def test_columns_that_do_not_fit_together_are_damaged(dtype: str, shape: str) -> None:
    _, _, content, crc = pack(np.zeros(2, np.float32), "input").values
    assert unpack((dtype, shape, content, crc)) is None


def test_rows_have_the_shape_of_one_array() -> None:
    assert empty_rows("int64", "[2, 3]", 4).shape == (4, 2, 3)
