from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_client.held_weights import MAX_RUNS, HeldWeights
from fedge.messages import DeltaRequest, Downlink, Refusal, WeightsRequest
from fedge.params import Layout, Vector, vector_digest
from fedge.settings import Hyperparameters

LAYOUT = Layout(("w",), ((4,),))
BASE = np.array([1, -2, 3, 1e8], np.float32)


def full(weights: Vector = BASE, run_name: str = "run", keep_parent: bool = True) -> WeightsRequest:
    return WeightsRequest(
        run_name, 1, 5, LAYOUT, weights, Hyperparameters(), keep_parent=keep_parent
    )


def delta_request(downlink: Downlink, layout: Layout = LAYOUT) -> DeltaRequest:
    return DeltaRequest("run", 2, 5, layout, downlink, Hyperparameters(), keep_parent=True)


def raw(*deltas: Vector) -> tuple[bytes, ...]:
    return tuple(delta.astype("<f4").tobytes() for delta in deltas)


def holding(weights: Vector = BASE) -> HeldWeights:
    held = HeldWeights()
    held.keep(full(weights), vector_digest(weights))
    return held


def refused(held: HeldWeights, request: DeltaRequest) -> str:
    answer = held.complete(request)
    assert isinstance(answer, Refusal)
    assert answer.reason == "stale-base"
    return answer.detail


@given(st.lists(arrays.arrays(np.float32, 4, elements=st.floats(-1e6, 1e6, width=32)), max_size=4))
def test_base_plus_every_payload_in_order_is_the_parent(deltas: list[Vector]) -> None:
    parent = BASE.copy()
    for delta in deltas:
        parent = parent + delta
    downlink = Downlink(vector_digest(BASE), vector_digest(parent), "raw", raw(*deltas))
    request = holding().complete(delta_request(downlink))
    assert isinstance(request, WeightsRequest)
    assert request.weights.tobytes() == parent.tobytes()
    assert request.key == delta_request(downlink).key


def test_the_order_of_the_payloads_matters_and_is_checked() -> None:
    small, big = np.full(4, 3, np.float32), np.full(4, 1e8, np.float32)
    parent = (BASE + small) + big
    assert vector_digest(parent) != vector_digest((BASE + big) + small)
    downlink = Downlink(vector_digest(BASE), vector_digest(parent), "raw", raw(big, small))
    assert "led to" in refused(holding(), delta_request(downlink))


def test_what_is_held_already_needs_no_delta() -> None:
    parent = BASE + 1
    downlink = Downlink(vector_digest(BASE), vector_digest(parent), "raw", (b"not even read",))
    request = holding(parent).complete(delta_request(downlink))
    assert isinstance(request, WeightsRequest)
    assert request.weights.tobytes() == parent.tobytes()


def test_what_is_held_is_not_changed_by_a_delta() -> None:
    held = holding()
    downlink = Downlink(vector_digest(BASE), "b" * 64, "raw", raw(np.ones(4, np.float32)))
    refused(held, delta_request(downlink))
    refused(held, delta_request(downlink))
    assert held.holds("run", vector_digest(BASE))
    empty = Downlink(vector_digest(BASE), vector_digest(BASE), "raw", ())
    request = held.complete(delta_request(empty))
    assert isinstance(request, WeightsRequest)
    assert request.weights.tobytes() == BASE.tobytes()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"base": "c" * 64}, "the delta is against"),
        ({"parent": "c" * 64}, "led to"),
        ({"payloads": (b"short",)}, "cannot be decoded"),
        ({"payloads": raw(np.full(4, np.inf, np.float32)) * 2}, "led to"),
        ({"payloads": raw(np.full(4, 3e38, np.float32)) * 2}, "led to"),
        ({"codec": "no-such-codec"}, "cannot be decoded"),
    ],
)
def test_a_delta_that_does_not_fit_asks_for_whole_weights(
    fields: dict[str, Any], text: str
) -> None:
    delta = np.ones(4, np.float32)
    good = Downlink(vector_digest(BASE), vector_digest(BASE + delta), "raw", raw(delta))
    assert isinstance(holding().complete(delta_request(good)), WeightsRequest)
    assert text in refused(holding(), delta_request(replace(good, **fields)))


def test_a_layout_of_another_size_is_refused_before_anything_is_decoded() -> None:
    layout = Layout(("w",), ((2**40,),))
    downlink = Downlink(vector_digest(BASE), "b" * 64, "raw", (b"x",))
    assert "parameters" in refused(holding(), delta_request(downlink, layout))


def test_nothing_is_held_of_a_run_that_did_not_ask_for_it() -> None:
    digest = vector_digest(BASE)
    downlink = Downlink(digest, digest, "raw", ())
    assert "no version" in refused(HeldWeights(), delta_request(downlink))
    held = holding()
    held.keep(full(keep_parent=False), digest)
    assert not held.holds("run", digest)
    assert "no version" in refused(held, delta_request(downlink))


def test_only_the_last_version_of_the_last_runs_is_held() -> None:
    held = holding()
    newer = BASE + 1
    held.keep(full(newer), vector_digest(newer))
    assert held.holds("run", vector_digest(newer))
    assert not held.holds("run", vector_digest(BASE))
    for index in range(MAX_RUNS):
        held.keep(full(run_name=f"run-{index}"), vector_digest(BASE))
    assert not held.holds("run", vector_digest(newer))
    assert all(held.holds(f"run-{index}", vector_digest(BASE)) for index in range(MAX_RUNS))


def test_what_is_held_in_another_size_is_not_used_even_where_it_is_the_parent() -> None:
    digest = vector_digest(BASE)
    larger = Layout(("w",), ((5,),))
    detail = refused(holding(), delta_request(Downlink(digest, digest, "raw", ()), larger))
    assert "holds 4 parameters" in detail
