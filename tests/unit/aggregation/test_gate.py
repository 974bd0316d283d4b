from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregation.contracts import ClientUpdate
from aggregation.gate import GateLimits, UpdateGate, squared_norm
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
    ],
)
def test_what_is_wrong_is_refused_located_and_counted(changes: dict[str, Any], reason: str) -> None:
    gate = open_gate()
    with pytest.raises(UpdateRejected) as caught:
        admit(gate, **changes)
    assert caught.value.reason == reason
    assert (caught.value.client, caught.value.round) == (7, 5)
    assert "client 7" in str(caught.value)
    assert "round 5" in str(caught.value)
    assert gate.counts == {reason: 1}


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
    assert gate.counts == {"not-finite": 1, "duplicate": 2}


def test_a_new_round_forgets_who_was_admitted_and_what_was_refused() -> None:
    gate = open_gate()
    admit(gate)
    with pytest.raises(UpdateRejected):
        admit(gate)
    gate.open_round(6, "b" * 64)
    assert gate.counts == {}
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
    above[0] = np.nextafter(np.float32(1), np.float32(2))
    with pytest.raises(UpdateRejected, match="at most 2") as caught:
        admit(gate, above, client=8)
    assert caught.value.reason == "norm"


def test_the_example_weight_may_reach_its_limit() -> None:
    gate = open_gate(GateLimits(max_examples=100))
    assert admit(gate, num_examples=100).num_examples == 100.0
    with pytest.raises(UpdateRejected):
        admit(gate, num_examples=100.001, client=8)


def test_numpy_scalars_are_numbers() -> None:
    gate = open_gate()
    assert admit(gate, num_examples=np.float32(2.5)).num_examples == 2.5
    assert admit(gate, num_examples=np.int64(3), client=8).num_examples == 3.0


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)))
def test_the_norm_is_finite_exactly_if_every_value_is(vector: Vector) -> None:
    assert np.isfinite(squared_norm(vector)) == np.isfinite(vector).all()


@given(hnp.arrays(np.uint32, 4))
def test_any_four_words_are_admitted_or_refused_without_warning(
    words: npt.NDArray[np.uint32],
) -> None:
    gate = open_gate()
    delta = words.view(np.float32)
    if np.isfinite(delta).all() and np.abs(delta).max() < 1e23:
        assert admit(gate, delta).delta is delta
        return
    with pytest.raises(UpdateRejected):
        admit(gate, delta)
    assert set(gate.counts) <= {"not-finite", "norm"}


def test_the_norm_is_right_across_chunks_in_little_memory() -> None:
    vector = np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32)
    tracemalloc.start()
    found = squared_norm(vector)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == pytest.approx(float(np.sum(vector.astype(np.float64) ** 2)), rel=1e-12)
    assert peak < 3 * 1024 * 1024
