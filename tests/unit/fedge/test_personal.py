"""Which parameters stay on a client, and what is done with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from fedge.errors import ConfigError
from fedge.params import Layout, Vector
from fedge.personal import PersonalPart, personal_part

LAYOUT = Layout(("body.weight", "body.bias", "head.weight", "head.bias"), ((2, 3), (3,), (3,), ()))
IN_HEAD = slice(9, 13)

vectors = hnp.arrays(np.float32, LAYOUT.size)


def head() -> PersonalPart:
    part = personal_part(LAYOUT, ("head.*",))
    assert part is not None
    return part


def test_without_patterns_nothing_is_personal() -> None:
    assert personal_part(LAYOUT, ()) is None


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("head.*",), ("head.weight", "head.bias")),
        (("*.bias", "body.*"), ("body.weight", "body.bias", "head.bias")),
        (("head.bias", "*.bias"), ("body.bias", "head.bias")),
        (("[h]ead.weigh?",), ("head.weight",)),
    ],
)
def test_patterns_name_parameters_in_the_order_of_the_model(
    patterns: tuple[str, ...], names: tuple[str, ...]
) -> None:
    part = personal_part(LAYOUT, patterns)
    assert part is not None
    assert part.names == names


@pytest.mark.parametrize("pattern", ["hed.*", "HEAD.*", "head", ""])
def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(pattern: str) -> None:
    text = rf"^train\.personal_layers: '{pattern.replace('*', '[*]')}' matches no .*body\.weight, "
    with pytest.raises(ConfigError, match=text):
        personal_part(LAYOUT, ("head.*", pattern))


def test_a_long_list_of_names_is_cut() -> None:
    layout = Layout(tuple(f"layer.{i}" for i in range(100)), ((1,),) * 100)
    with pytest.raises(ConfigError, match=r"layer\.19 and 80 more$"):
        personal_part(layout, ("head",))


@pytest.mark.parametrize("patterns", [("*",), ("head.*", "body.*")])
def test_patterns_that_leave_nothing_to_share_are_refused(patterns: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^train\.personal_layers: .*match every parameter"):
        personal_part(LAYOUT, patterns)


@given(vectors, vectors)
def test_what_was_taken_is_put_into_another_vector_bit_by_bit(own: Vector, shared: Vector) -> None:
    before = own.tobytes(), shared.tobytes()
    put = head().put(shared, head().take(own))
    assert put[IN_HEAD].tobytes() == own[IN_HEAD].tobytes()
    assert put[:9].tobytes() == shared[:9].tobytes()
    assert (own.tobytes(), shared.tobytes()) == before


@given(vectors)
def test_without_its_personal_part_a_vector_is_zero_there_and_the_same_elsewhere(
    vector: Vector,
) -> None:
    before = vector.tobytes()
    left = head().without(vector)
    assert not left[IN_HEAD].any()
    assert left[:9].tobytes() == vector[:9].tobytes()
    assert vector.tobytes() == before


def test_what_is_taken_does_not_follow_the_vector() -> None:
    vector = np.ones(LAYOUT.size, np.float32)
    taken = head().take(vector)
    vector[:] = 5
    assert taken["head.weight"].tolist() == [1, 1, 1]
    assert head().fits(taken)


@pytest.mark.parametrize(
    "change",
    [
        {"head.weight": np.zeros(4, np.float32)},
        {"head.weight": np.zeros(3, np.float64)},
        {"head.weight": [0.0, 0.0, 0.0]},
        {"body.bias": np.zeros(3, np.float32)},
    ],
)
def test_other_tensors_do_not_fit(change: dict[str, Any]) -> None:
    taken = head().take(np.zeros(LAYOUT.size, np.float32))
    assert not head().fits({**taken, **change})
    assert not head().fits({"head.weight": taken["head.weight"]})
    assert not head().fits("head")
