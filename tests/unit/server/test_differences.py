"""Differences between published weights, encoded once."""

from pathlib import Path

import numpy as np
import pytest

from fedge.manifest import Blob
from fedge.weight_delta import decode_delta
from server import differences
from server.differences import MAX_KEPT, Differences
from server.publisher import Publisher
from tests.unit.server.test_publisher import model, publisher


def add(registry: Publisher, content: bytes) -> str:
    registry._store_blob(content)
    return Blob.of(content).digest


def weights(scale: float) -> bytes:
    generator = np.random.default_rng(0)
    return (generator.normal(size=4000) * scale).astype("<f4").tobytes()


@pytest.fixture
def registry(tmp_path: Path) -> Publisher:
    made = publisher(tmp_path)
    made.publish(1, model(1.0))
    return made


def test_a_difference_gives_the_weights_and_is_encoded_once(
    registry: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = weights(1.0), weights(1.0001)
    parent, digest = add(registry, old), add(registry, new)
    made = Differences(registry)
    encoded = made.get(parent, digest)
    assert encoded is not None
    assert len(encoded) < len(new)
    assert decode_delta(encoded, old) == new
    monkeypatch.setattr(differences, "encode_delta", lambda *_: 1 / 0)
    assert made.get(parent, digest) == encoded


def test_what_saves_nothing_is_sent_whole(registry: Publisher) -> None:
    noise = np.random.default_rng(1).integers(0, 2**32, (2, 4000), np.uint32).astype("<u4")
    parent, digest = (add(registry, row.tobytes()) for row in noise)
    assert Differences(registry).get(parent, digest) is None


def test_what_cannot_be_compared_is_sent_whole(registry: Publisher) -> None:
    digest = add(registry, weights(1.0))
    made = Differences(registry)
    assert made.get("a" * 64, digest) is None
    assert made.get(digest, "a" * 64) is None
    assert made.get(add(registry, weights(1.0)[:-4]), digest) is None
    assert made.get(add(registry, b"odd"), add(registry, b"eve")) is None


def test_only_the_last_few_are_held(registry: Publisher) -> None:
    digest, made = add(registry, weights(1.0)), Differences(registry)
    for number in range(MAX_KEPT + 3):
        made.get(add(registry, weights(1.0 + 1e-5 * number)), digest)
    assert len(made._kept) == MAX_KEPT
