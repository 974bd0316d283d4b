from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aggregation.codecs import make_codec
from fedge.config import build
from fedge.errors import ConfigError
from fedge.params import Layout, Vector, vector_digest
from fedge.requests import Downlink
from server.broadcast import MEMORY, Broadcast
from server.settings import ServerConfig

LAYOUT = Layout(("w",), ((4096,),))


def walk(num_rounds: int) -> list[Vector]:
    """Global weights of a run: each round moves them a little."""
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((num_rounds, LAYOUT.size)).astype(np.float32)
    return list(np.cumsum(steps, axis=0, dtype=np.float32))


def reconstruct(base: Vector, downlink: Downlink) -> Vector:
    """What a device does."""
    assert vector_digest(base) == downlink.base
    codec = make_codec(downlink.codec)
    vector = base
    for payload in downlink.payloads:
        vector = vector + codec.decode(payload, LAYOUT)
    assert vector_digest(vector) == downlink.parent
    return vector


def test_without_a_codec_devices_get_the_global_weights() -> None:
    broadcast = Broadcast("", LAYOUT, seed=0)
    weights = walk(1)[0]
    broadcast.advance(weights, {}, 1)
    broadcast.note_holds(7, broadcast.parent)
    assert broadcast.weights is weights
    assert broadcast.parent == vector_digest(weights)
    assert broadcast.downlink(7) is None
    assert broadcast.remember({"mean": 1}) == {"mean": 1}


@pytest.mark.parametrize("spec", ["int8", "rotate+int4", "topk:0.05+f16"])
def test_a_device_that_holds_an_earlier_version_arrives_at_this_one(spec: str) -> None:
    broadcast = Broadcast(spec, LAYOUT, seed=0)
    memory: dict[str, Any] = {}
    held: Vector | None = None
    for round, weights in enumerate(walk(4), start=1):
        broadcast.advance(weights, memory, round)
        memory = broadcast.remember({})
        if round == 1:
            held = broadcast.weights
            broadcast.note_holds(7, broadcast.parent)
    downlink = broadcast.downlink(7)
    assert downlink is not None
    assert len(downlink.payloads) == 3
    assert held is not None
    np.testing.assert_array_equal(reconstruct(held, downlink), broadcast.weights)


def test_what_the_codec_loses_is_caught_up_with() -> None:
    broadcast = Broadcast("topk:0.25+f16", LAYOUT, seed=0)
    memory: dict[str, Any] = {}
    first, last = walk(2)
    broadcast.advance(first, memory, 1)
    distances = []
    for round in range(2, 14):
        memory = broadcast.remember({})
        broadcast.advance(last, memory, round)
        distances.append(float(np.linalg.norm(broadcast.weights - last)))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01 * distances[0]


def test_a_resumed_run_sends_the_same_vector(tmp_path: Any) -> None:
    first, second = walk(2)
    straight = Broadcast("int8", LAYOUT, seed=3)
    straight.advance(first, {}, 1)
    memory = straight.remember({})
    straight.advance(second, memory, 2)
    resumed = Broadcast("int8", LAYOUT, seed=3)
    resumed.advance(second, memory, 2)
    assert resumed.parent == straight.parent
    assert memory[MEMORY] is first


def test_a_long_way_a_lost_or_an_unknown_version_means_whole_weights() -> None:
    broadcast = Broadcast("f16", LAYOUT, seed=0)
    memory: dict[str, Any] = {}
    for round, weights in enumerate(walk(3), start=1):
        broadcast.advance(weights, memory, round)
        memory = broadcast.remember({})
        broadcast.note_holds(round, broadcast.parent)
    assert broadcast.downlink(1) is None  # two steps of 16 bits are as long as the weights
    assert broadcast.downlink(2) is not None
    assert broadcast.downlink(9) is None
    broadcast.forget(2)
    assert broadcast.downlink(2) is None
    here = broadcast.downlink(3)
    assert here is not None
    assert here.payloads == ()


def test_a_memory_of_another_model_is_not_used() -> None:
    broadcast = Broadcast("int8", LAYOUT, seed=0)
    weights = walk(1)[0]
    broadcast.advance(weights, {MEMORY: np.zeros(3, np.float32)}, 5)
    assert broadcast.parent == vector_digest(weights)


@pytest.mark.parametrize(
    ("key", "spec"),
    [
        ("codec", "zip"),
        ("codec", ""),
        ("downlink_codec", "topk:2"),
        ("downlink_codec", "signs:0.5"),
    ],
)
def test_a_codec_that_cannot_work_is_refused_with_its_key(key: str, spec: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ServerConfig, {"aggregation": {key: spec}})
    assert caught.value.key == f"aggregation.{key}"


def test_steps_and_nodes_that_no_delta_helps_are_forgotten() -> None:
    broadcast = Broadcast("int8", LAYOUT, seed=0)
    memory: dict[str, Any] = {}
    for round, weights in enumerate(walk(10), start=1):
        broadcast.advance(weights, memory, round)
        memory = broadcast.remember({})
        broadcast.note_holds(round, broadcast.parent)
    assert len(broadcast._steps) == 3  # int8 takes a little more than a quarter
    assert sorted(broadcast._held) == [7, 8, 9, 10]
    assert broadcast.downlink(7) is not None
    assert broadcast.downlink(6) is None
