from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_client.tensors import make_tensor, read_tensor
from fedge.errors import InvalidInput
from protos.fedge.v1.inference_pb2 import Tensor

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)


@given(hnp.arrays(st.sampled_from([np.float32, np.int32]), SHAPES))
def test_arrays_come_back_bit_for_bit(array: Any) -> None:
    found = read_tensor(make_tensor(array), "input")
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_other_dtypes_are_narrowed_where_nothing_is_lost() -> None:
    assert make_tensor(np.int64(7)).dtype == "int32"
    assert make_tensor(np.array([0.5])).dtype == "float32"
    with pytest.raises(InvalidInput, match="int32"):
        make_tensor(2**31)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (Tensor(dtype="float64", shape=[1], data=bytes(8)), "expected dtype float32 or int32"),
        (Tensor(shape=[1], data=bytes(4)), "expected dtype float32 or int32, got ''"),
        (Tensor(dtype="float32", shape=[2], data=bytes(4)), "expected 8 bytes of float32"),
        (Tensor(dtype="int32", data=b""), "expected 4 bytes of int32"),
        (Tensor(dtype="float32", shape=[-1], data=b""), "none negative"),
        (Tensor(dtype="float32", shape=[-2, -2], data=bytes(16)), "none negative"),
        (Tensor(dtype="float32", shape=[1] * 9, data=bytes(4)), "at most 8 dimensions"),
        (Tensor(dtype="float32", shape=[2**62, 2**62], data=b""), "got 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(tensor: Tensor, expected: str) -> None:
    with pytest.raises(InvalidInput, match=f"label: .*{expected}"):
        read_tensor(tensor, "label")
