import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ModelError
from fedge.params import Layout
from fedge.tflite.copies import Copy
from fedge.tflite.plan import Plan
from tests.unit.fedge.tflite.helpers import flip_bit, layouts, make_plan

LAYOUT = Layout(("w", "b"), ((3, 4), (4,)))
PLAN = make_plan(LAYOUT, transposed=frozenset({"w"}))[1]


@given(layouts())
def test_json_gives_the_same_plan_back(layout: Layout) -> None:
    plan = make_plan(layout)[1]
    assert Plan.from_json(plan.to_json()) == plan


def test_every_flipped_bit_is_refused() -> None:
    content = PLAN.to_json().encode()
    for bit in range(8 * len(content)):
        with pytest.raises(ModelError):
            Plan.from_json(flip_bit(content, bit).decode(errors="surrogateescape"))


def test_every_truncation_is_refused() -> None:
    text = PLAN.to_json()
    for length in range(len(text)):
        with pytest.raises(ModelError):
            Plan.from_json(text[:length])


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        Plan.from_json(text)


def test_a_tensor_that_is_not_copied_must_be_declared() -> None:
    with pytest.raises(ModelError, match="parameter b is not copied whole"):
        dataclasses.replace(PLAN, copies=PLAN.copies[:1])
    assert dataclasses.replace(PLAN, copies=PLAN.copies[:1], unused=("b",)).unused == ("b",)


def test_half_a_tensor_is_not_enough() -> None:
    half = dataclasses.replace(PLAN.copies[1], dims=(3,))
    with pytest.raises(ModelError, match="parameter b is not copied whole"):
        dataclasses.replace(PLAN, copies=(PLAN.copies[0], half))


def test_repeating_one_half_does_not_cover_the_other() -> None:
    repeated = Copy("b", PLAN.copies[1].offset_bytes, (2, 2), (2, 1), 0, (0, 1))
    with pytest.raises(ModelError, match="parameter b is not copied whole"):
        dataclasses.replace(PLAN, copies=(PLAN.copies[0], repeated))


def test_writing_the_same_bytes_twice_is_refused() -> None:
    moved = dataclasses.replace(PLAN.copies[1], offset_bytes=PLAN.copies[0].offset_bytes + 8)
    with pytest.raises(ModelError, match="two copies write the same place"):
        dataclasses.replace(PLAN, copies=(PLAN.copies[0], moved))


def test_a_copy_that_overlaps_itself_is_refused_before_any_memory_is_touched() -> None:
    folded = Copy("b", PLAN.copies[1].offset_bytes, (2,) * 5, (1,) * 5, 0, (0,) * 4 + (1,))
    with pytest.raises(ModelError, match="two copies write the same place"):
        dataclasses.replace(PLAN, copies=(PLAN.copies[0], folded))


def test_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter is called x"):
        dataclasses.replace(PLAN, copies=(dataclasses.replace(PLAN.copies[0], parameter="x"),))


@pytest.mark.parametrize(
    ("ties", "unused"),
    [((("b", "w"),), ()), ((("a", "b"),), ()), ((), ("x",)), ((), ("b",))],
)
def test_wrong_declarations_are_refused(
    ties: tuple[tuple[str, str], ...], unused: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError, match="plan:"):
        dataclasses.replace(PLAN, ties=ties, unused=unused)


@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_an_impossible_file_size_is_refused(size: int) -> None:
    with pytest.raises(ModelError, match="bytes"):
        dataclasses.replace(PLAN, template_size_bytes=size)


def test_a_plan_of_another_format_says_which_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedge.tflite.plan.FORMAT", 2)
    newer = PLAN.to_json()
    monkeypatch.undo()
    with pytest.raises(ModelError, match="format 2, this version reads 1"):
        Plan.from_json(newer)
