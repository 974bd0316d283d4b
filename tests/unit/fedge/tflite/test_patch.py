import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from fedge.params import Layout
from fedge.tflite.copies import Copy
from fedge.tflite.patch import Patcher
from tests.unit.fedge.tflite.helpers import (
    finish_plan,
    flip_bit,
    layouts,
    make_plan,
    random_weights,
    weight_bytes,
)

LAYOUT = Layout(("w", "b"), ((3, 4), (4,)))
TEMPLATE, PLAN = make_plan(LAYOUT, transposed=frozenset({"w"}))


@given(layouts(), st.sets(st.integers(0, 4)), st.integers(0, 99))
def test_patching_then_extracting_gives_the_weights_back(
    layout: Layout, transposed: set[int], seed: int
) -> None:
    names = frozenset(f"t{number}" for number in transposed)
    template, plan = make_plan(layout, transposed=names, seed=seed)
    weights = random_weights(layout, seed)
    patched = Patcher(template, plan).patch(layout, weights)
    assert np.array_equal(Patcher(patched, plan).extract(layout), weights)


@given(layouts(), st.integers(0, 99))
def test_patching_with_what_is_there_changes_nothing(layout: Layout, seed: int) -> None:
    template, plan = make_plan(layout, seed=seed)
    patcher = Patcher(template, plan)
    assert patcher.patch(layout, patcher.extract(layout)) == template
    assert patcher.shipped_weights().tobytes() == patcher.extract(layout).tobytes()


def test_a_transposed_tensor_is_written_transposed_and_nothing_else_changes() -> None:
    weights = random_weights(LAYOUT)
    patched = Patcher(TEMPLATE, PLAN).patch(LAYOUT, weights)
    expected = bytearray(TEMPLATE)
    matrix = weights[:12].reshape(3, 4).T.tobytes()
    expected[40 : 40 + 48] = matrix
    expected[100 : 100 + 16] = weights[12:].tobytes()
    assert patched == bytes(expected)


def test_every_bit_outside_the_weights_is_guarded() -> None:
    inside = weight_bytes(PLAN)
    assert len(inside) == LAYOUT.size_bytes
    for bit in range(8 * len(TEMPLATE)):
        if bit // 8 not in inside:
            with pytest.raises(ModelError, match="not the one"):
                Patcher(flip_bit(TEMPLATE, bit), PLAN)


def test_every_bit_inside_the_weights_is_guarded_as_shipped() -> None:
    for byte in weight_bytes(PLAN):
        for bit in range(8):
            damaged = Patcher(flip_bit(TEMPLATE, 8 * byte + bit), PLAN)
            with pytest.raises(ModelError, match="damaged"):
                damaged.shipped_weights()


@pytest.mark.parametrize("length", [0, 1, len(TEMPLATE) // 2, len(TEMPLATE) - 1])
def test_a_truncated_template_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match="bytes, its plan was made for"):
        Patcher(TEMPLATE[:length], PLAN)


def test_a_longer_template_is_refused() -> None:
    with pytest.raises(ModelError, match="bytes, its plan was made for"):
        Patcher(TEMPLATE + b"\0", PLAN)


def test_the_template_itself_never_changes() -> None:
    template = bytearray(TEMPLATE)
    patcher = Patcher(bytes(template), PLAN)
    first = patcher.patch(LAYOUT, random_weights(LAYOUT, 1))
    kept = bytes(first)
    second = patcher.patch(LAYOUT, random_weights(LAYOUT, 2))
    assert first == kept != second
    assert patcher.shipped_weights().tobytes() == Patcher(TEMPLATE, PLAN).extract(LAYOUT).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_the_tensor(value: float) -> None:
    weights = random_weights(LAYOUT)
    weights[-1] = value
    with pytest.raises(ModelError, match="tensor b is not finite"):
        Patcher(TEMPLATE, PLAN).patch(LAYOUT, weights)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout(("w", "b"), ((4, 3), (4,))), r"tensor w: expected \(3, 4\), got \(4, 3\)"),
        (Layout(("w",), ((3, 4),)), r"tensor b: expected \(4,\), got None"),
        (Layout(("b", "w"), ((4,), (3, 4))), "order"),
    ],
)
def test_another_layout_is_refused_and_named(layout: Layout, text: str) -> None:
    patcher = Patcher(TEMPLATE, PLAN)
    with pytest.raises(ModelError, match=text):
        patcher.patch(layout, random_weights(layout))
    with pytest.raises(ModelError, match=text):
        patcher.extract(layout)


def test_a_vector_of_another_length_or_dtype_is_refused() -> None:
    for wrong in (np.zeros(15, np.float32), np.zeros(16, np.float64)):
        with pytest.raises(ModelError, match="weights do not fit"):
            Patcher(TEMPLATE, PLAN).patch(LAYOUT, wrong)  # type: ignore[arg-type]


def test_a_tied_tensor_follows_its_source_and_an_unused_one_is_zero() -> None:
    layout = Layout(("early", "late", "spare"), ((4,), (4,), (2,)))
    template, plan = make_plan(layout, ties=(("early", "late"),), unused=("spare",))
    weights = random_weights(layout)
    patched = Patcher(template, plan).patch(layout, weights)
    found = Patcher(patched, plan).extract(layout)
    assert found.tolist() == [*weights[4:8], *weights[4:8], 0, 0]


def test_a_scalar_that_stands_twice_is_written_twice_and_must_agree() -> None:
    layout = Layout(("b",), ((4,),))
    copies = (Copy("b", 0, (4,), (1,), 0, (1,)), Copy("b", 32, (4,), (1,), 0, (1,)))
    values = np.arange(1, 5, dtype=np.float32).tobytes()
    template = values + bytes(16) + values
    plan = finish_plan(template, layout, copies)
    weights = random_weights(layout)
    patched = Patcher(template, plan).patch(layout, weights)
    assert patched == weights.tobytes() + bytes(16) + weights.tobytes()
    with pytest.raises(ModelError, match="two copies of b differ"):
        Patcher(flip_bit(template, 5), plan).extract(layout)


def test_files_are_read_as_bytes() -> None:
    assert Patcher.from_bytes(TEMPLATE, PLAN.to_json().encode()).plan == PLAN
    with pytest.raises(ModelError, match="not a patching plan"):
        Patcher.from_bytes(TEMPLATE, b"\xff\xfe")
