from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from aggregation.contracts import ClientUpdate
from aggregation.gate import GateLimits, UpdateGate
from fedge.errors import UpdateRejected
from fedge.params import Layout, Vector

LAYOUT = Layout(("weight",), ((4,),))
PARENT = "a" * 64


def open_gate(limits: GateLimits | None = None) -> UpdateGate:
    gate = UpdateGate(LAYOUT, limits or GateLimits())
    gate.open_round(5, PARENT)
    return gate


def admit(gate: UpdateGate, delta: Vector | None = None, **changes: Any) -> ClientUpdate:
    claims: dict[str, Any] = {
        "round": 5,
        "parent": PARENT,
        "layout_digest": LAYOUT.digest,
        **changes,
    }
    client = claims.pop("client", 7)
    num_examples = claims.pop("num_examples", 10.0)
    vector = np.ones(4, np.float32) if delta is None else delta
    return gate.admit(client, vector, num_examples, **claims)


def test_a_good_update_is_admitted_as_it_is() -> None:
    delta = np.arange(4, dtype=np.float32)
    update = admit(open_gate(), delta, num_examples=3)
    assert (update.client, update.num_examples) == (7, 3.0)
    assert isinstance(update.num_examples, float)
    assert update.delta is delta


def test_a_stock_client_has_no_layout_digest() -> None:
    assert admit(open_gate(), layout_digest=None).client == 7


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 4}, "round"),
        ({"round": 6}, "round"),
        ({"parent": "b" * 64}, "parent"),
        ({"layout_digest": "b" * 64}, "layout"),
        ({"delta": np.ones(5, np.float32)}, "shape"),
        ({"delta": np.ones((2, 2), np.float32)}, "shape"),
        ({"delta": np.ones(1, np.float32)}, "shape"),
        ({"delta": np.ones(4, np.float64)}, "dtype"),
        ({"delta": np.ones(4, ">f4")}, "dtype"),
        ({"delta": np.array([0, 0, 0, np.nan], np.float32)}, "not-finite"),
        ({"delta": np.array([0, np.inf, 0, 0], np.float32)}, "not-finite"),
        ({"delta": np.array([np.inf, -np.inf, 0, 0], np.float32)}, "not-finite"),
        ({"delta": np.full(4, 1e30, np.float32)}, "norm"),
        ({"delta": np.full(4, np.finfo(np.float32).max)}, "norm"),
        ({"num_examples": 0}, "examples"),
        ({"num_examples": -10.0}, "examples"),
        ({"num_examples": 1e12}, "examples"),
        ({"num_examples": float("nan")}, "examples"),
        ({"num_examples": float("inf")}, "examples"),
        ({"num_examples": 5e-324}, "examples"),
        ({"num_examples": 10**5000}, "examples"),
        ({"num_examples": True}, "examples"),
        ({"num_examples": "12"}, "examples"),
        ({"num_examples": None}, "examples"),
        ({"num_examples": 2 + 0j}, "examples"),
        ({"num_steps": 0.5}, "steps"),
        ({"num_steps": float("nan")}, "steps"),
        ({"num_steps": 1e9}, "steps"),
    ],
)
def test_what_is_wrong_is_refused_and_located(changes: dict[str, Any], reason: str) -> None:
    gate = open_gate()
    with pytest.raises(UpdateRejected) as caught:
        admit(gate, **changes)
    assert caught.value.reason == reason
    assert (caught.value.client, caught.value.round) == (7, 5)
    assert "client 7" in str(caught.value)
    assert "round 5" in str(caught.value)


def test_a_refused_client_may_try_again_and_an_admitted_one_may_not() -> None:
    gate = open_gate()
    with pytest.raises(UpdateRejected):
        admit(gate, np.full(4, np.nan, np.float32))
    admit(gate)
    admit(gate, client=8)
    for _ in range(2):
        with pytest.raises(UpdateRejected) as caught:
            admit(gate)
        assert caught.value.reason == "duplicate"


def test_a_new_round_forgets_who_was_admitted() -> None:
    gate = open_gate()
    admit(gate)
    gate.open_round(6, "b" * 64)
    assert admit(gate, round=6, parent="b" * 64).client == 7


def test_nothing_is_admitted_before_a_round_is_open() -> None:
    gate = UpdateGate(LAYOUT, GateLimits())
    with pytest.raises(UpdateRejected) as caught:
        admit(gate)
    assert caught.value.reason == "round"


def test_the_norm_may_reach_its_limit_and_not_pass_it() -> None:
    gate = open_gate(GateLimits(max_norm=2.0))
    assert admit(gate, np.ones(4, np.float32)).client == 7
    above = np.ones(4, np.float32)
    above[0] = 1.0001
    with pytest.raises(UpdateRejected, match="at most 2") as caught:
        admit(gate, above, client=8)
    assert caught.value.reason == "norm"


def test_the_example_weight_may_reach_its_limit() -> None:
    gate = open_gate(GateLimits(max_examples=100))
    assert admit(gate, num_examples=100).num_examples == 100.0
    with pytest.raises(UpdateRejected):
        admit(gate, num_examples=100.001, client=8)


def test_steps_are_bounded_by_what_the_claimed_examples_allow() -> None:
    gate = open_gate(GateLimits(max_epochs=2, batch_size=16))
    assert admit(gate, num_examples=60, num_steps=8).num_steps == 8.0
    with pytest.raises(UpdateRejected, match="expected 1 to 10, got 11") as caught:
        admit(gate, num_examples=60, num_steps=11, client=8)
    assert caught.value.reason == "steps"


def test_numpy_scalars_are_numbers() -> None:
    gate = open_gate()
    assert admit(gate, num_examples=np.float32(2.5)).num_examples == 2.5
    assert admit(gate, num_examples=np.int64(3), client=8).num_examples == 3.0


def test_a_late_update_is_admitted_within_the_limit_and_discounted() -> None:
    gate = UpdateGate(LAYOUT, GateLimits(max_staleness=3))
    for round, parent in enumerate("abcde", start=1):
        gate.open_round(round, parent * 64)
    late = admit(gate, round=2, parent="b" * 64)
    assert late.discount == pytest.approx((1 + 3) ** -0.5)
    assert late.weight == pytest.approx(late.num_examples / 2)
    assert admit(gate, client=8, round=5, parent="e" * 64).discount == 1.0
    with pytest.raises(UpdateRejected, match="expected 2 to 5, got 1"):
        admit(gate, client=9, round=1, parent="a" * 64)
    with pytest.raises(UpdateRejected, match="parent"):
        admit(gate, client=9, round=3, parent="d" * 64)


def test_a_late_and_a_fresh_update_of_one_client_do_not_meet_in_one_aggregate() -> None:
    gate = UpdateGate(LAYOUT, GateLimits(max_staleness=1))
    gate.open_round(4, "a" * 64)
    gate.open_round(5, PARENT)
    admit(gate, round=4, parent="a" * 64)
    with pytest.raises(UpdateRejected, match="duplicate"):
        admit(gate)


@given(hnp.arrays(np.uint32, 4))
def test_any_four_words_are_admitted_or_refused_without_warning(
    words: npt.NDArray[np.uint32],
) -> None:
    gate = open_gate()
    delta = words.view(np.float32)
    if np.isfinite(delta).all() and np.abs(delta).max() < 1e17:
        assert admit(gate, delta).delta is delta
        return
    with pytest.raises(UpdateRejected) as caught:
        admit(gate, delta)
    assert caught.value.reason == ("norm" if np.isfinite(delta).all() else "not-finite")


def test_what_an_update_says_of_personal_layers_is_not_looked_at() -> None:
    """A codec decodes zeros to a little noise, and a stock client sends all it trained."""
    layout = Layout(("body", "head"), ((2,), (2,)))
    gate = UpdateGate(layout, GateLimits(max_norm=5, personal_layers=("head",)))
    gate.open_round(5, PARENT)
    delta = np.array([3, 4, 1e6, np.nan], np.float32)
    update = admit(gate, delta, layout_digest=layout.digest)
    assert update.delta.tolist() == [3, 4, 0, 0]
    assert update.norm == pytest.approx(5)
    assert delta[2] == 1e6
