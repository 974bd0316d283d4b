from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import TaskError, UpdateRejected
from fedge.params import Layout, check_names, vector_digest

LAYOUT = Layout(("weight", "scale", "bias"), ((2, 3), (), (3,)))

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.lists(
    st.tuples(st.text(max_size=8), shapes), max_size=5, unique_by=lambda x: x[0]
).map(lambda pairs: Layout(tuple(name for name, _ in pairs), tuple(shape for _, shape in pairs)))


def test_sizes_and_offsets_follow_the_shapes() -> None:
    assert LAYOUT.sizes == (6, 1, 3)
    assert LAYOUT.offsets == (0, 6, 7, 10)
    assert (LAYOUT.size, LAYOUT.size_bytes) == (10, 40)


@given(layouts)
def test_json_brings_back_an_equal_layout(layout: Layout) -> None:
    again = Layout.from_json(layout.to_json())
    assert again == layout
    assert again.digest == layout.digest


@given(layouts, layouts)
def test_digests_are_equal_exactly_for_equal_layouts(left: Layout, right: Layout) -> None:
    assert (left.digest == right.digest) == (left == right)


@given(layouts)
def test_views_and_flatten_are_inverse_and_views_share_memory(layout: Layout) -> None:
    vector = np.arange(layout.size, dtype=np.float32)
    views = layout.views(vector)
    assert tuple(views) == layout.names
    assert tuple(view.shape for view in views.values()) == layout.shapes
    assert layout.flatten(views).tobytes() == vector.tobytes()
    for view in views.values():
        view[...] = -1
    assert (vector == -1).all()


def test_flatten_takes_any_memory_order_and_makes_a_new_vector() -> None:
    tensors = LAYOUT.views(np.arange(10, dtype=np.float32))
    tensors["weight"] = np.asfortranarray(tensors["weight"])
    vector = LAYOUT.flatten(tensors)
    np.testing.assert_array_equal(vector, np.arange(10))
    assert not np.shares_memory(vector, tensors["bias"])


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("weight", np.zeros((3, 2), np.float32), "shape"),
        ("weight", np.zeros(1, np.float32), "shape"),
        ("scale", np.zeros(1, np.float32), "shape"),
        ("bias", np.zeros(3, np.float64), "dtype"),
        ("extra", np.zeros(1, np.float32), "names"),
    ],
)
def test_flatten_names_the_tensor_it_refuses(
    name: str, tensor: npt.NDArray[Any], reason: str
) -> None:
    tensors = LAYOUT.views(np.zeros(10, np.float32))
    tensors[name] = tensor
    with pytest.raises(UpdateRejected, match=f"tensor {name}") as caught:
        LAYOUT.flatten(tensors)
    assert caught.value.reason == reason


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(UpdateRejected, match=r"tensor bias: expected present, got missing"):
        check_names(LAYOUT.names, ["weight", "scale"])


def test_check_returns_flat_float32_of_the_right_length_only() -> None:
    vector = np.zeros(10, np.float32)
    assert LAYOUT.check(vector) is vector
    strided = np.zeros(20, np.float32)[::2]
    assert LAYOUT.check(strided).flags.c_contiguous
    for wrong, reason in (
        (np.zeros(11, np.float32), "shape"),
        (np.zeros((2, 5), np.float32), "shape"),
        (np.zeros(10), "dtype"),
        (np.zeros(10, ">f4"), "dtype"),
    ):
        with pytest.raises(UpdateRejected) as caught:
            LAYOUT.check(wrong)  # type: ignore[arg-type]
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("names", "all_shapes"),
    [
        (("a",), ((1,), (2,))),
        (("a", "a"), ((1,), (2,))),
        (("a",), ((-1,),)),
        (("a",), ((1.5,),)),
        (("a",), ((True,),)),
        (("a",), (("1",),)),
        ((1,), ((1,),)),
    ],
)
def test_a_layout_that_means_nothing_is_refused(names: Any, all_shapes: Any) -> None:
    with pytest.raises(TaskError, match="layout"):
        Layout(names, all_shapes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"names": 1, "shapes": 2}',
        '{"names": ["a"], "shapes": [3]}',
        "[" * 9999,
        '{"names": [["a"]], "shapes": [[1]]}',
    ],
)
def test_text_that_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(TaskError, match="layout"):
        Layout.from_json(text)


def test_the_digest_of_a_vector_is_that_of_its_bytes() -> None:
    vector = np.arange(6, dtype=np.float32)
    assert vector_digest(vector) == hashlib.sha256(vector.tobytes()).hexdigest()
    assert vector_digest(vector[::2]) == hashlib.sha256(vector[::2].tobytes()).hexdigest()
    assert vector_digest(np.zeros(0, np.float32)) == hashlib.sha256(b"").hexdigest()
