"""A device predicts with the published body and its own head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.inference import Serving
from edge_client.model_store import ModelStore
from edge_client.personal_model import PersonalModel, compose_from
from edge_client.replies import FileReplyStore
from edge_client.round_memory import RoundMemory
from fedge.errors import ModelError
from fedge.messages import EncodedUpdate, RoundKey
from fedge.params import Vector
from fedge.personal import personal_part
from tests.unit.edge_client.engines import LAYOUT, answer, make_inputs, make_weights
from tests.unit.edge_client.published_versions import KEY, publish

INPUTS = make_inputs(5)
PART = personal_part(LAYOUT, (LAYOUT.names[-2], LAYOUT.names[-1]))


class Device:
    """What the daemon makes of its state folder."""

    def __init__(self, folder: Path) -> None:
        self.replies = FileReplyStore(folder / "replies")
        compose = compose_from(self.replies)
        self.store = ModelStore(folder / "models", KEY.public_key(), compose=compose)
        self.serving = Serving()
        self.personal = PersonalModel(self.replies, self.store, self.serving, 1)

    def train(
        self,
        seed: int,
        *,
        run_name: str = "run",
        layout: str = LAYOUT.digest,
        times: float = 1.0,
    ) -> None:
        """Leave what a round of training would: a reply, and the head of these weights."""
        assert PART is not None
        tensors = PART.take(make_weights(seed) * np.float32(times))
        key = RoundKey(run_name, seed, "a" * 64, "b" * 64)
        update = EncodedUpdate(seed, "a" * 64, layout, "raw", b"", 1.0)
        self.replies.put(key, update, RoundMemory(layout, "raw", personal=tensors).to_memory())
        self.personal.refresh(run_name)

    def predict(self) -> np.ndarray:
        return self.serving.predict(INPUTS).output


def composed(body: int, head: int) -> Vector:
    assert PART is not None
    return PART.put(make_weights(body), PART.take(make_weights(head)))


def assert_answers(found: np.ndarray, weights: Vector) -> None:
    np.testing.assert_allclose(found, answer(weights, INPUTS), rtol=1e-5, atol=1e-5)


def test_each_round_of_training_and_each_version_changes_its_part_of_the_model(
    tmp_path: Path,
) -> None:
    device = Device(tmp_path)
    device.store.install(*publish(1).args)
    device.serving.reload(lambda: device.store.load_engine(1))
    assert_answers(device.predict(), make_weights(1))
    device.train(5)
    assert_answers(device.predict(), composed(1, 5))
    device.train(6)
    assert_answers(device.predict(), composed(1, 6))
    device.store.install(*publish(2).args)
    device.serving.reload(lambda: device.store.load_engine(1))
    assert_answers(device.predict(), composed(2, 6))
    assert device.serving.version == publish(2).version


def test_a_restarted_device_predicts_with_its_own_head(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.store.install(*publish(1).args)
    device.train(5)
    assert_answers(Device(tmp_path).store.load_engine(1).predict(INPUTS), composed(1, 5))


@pytest.mark.parametrize("times", [np.inf, 3e38])
def test_a_head_that_gives_no_numbers_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, times: float
) -> None:
    device = Device(tmp_path)
    device.store.install(*publish(1).args)
    device.train(5, times=times)
    device.serving.reload(lambda: device.store.load_engine(1))
    assert_answers(device.predict(), make_weights(1))
    assert "the layers kept on this device are left out" in caplog.text


@pytest.mark.parametrize("other", [{"run_name": "another"}, {"layout": "0" * 64}])
def test_the_head_of_another_run_or_model_is_not_put_in(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    device = Device(tmp_path)
    device.store.install(*publish(1).args)
    device.train(5, **other)
    assert_answers(device.predict(), make_weights(1))


def test_without_a_published_version_what_is_served_goes_on(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.train(5)
    with pytest.raises(ModelError, match="no model yet"):
        device.predict()


def test_without_personal_layers_nothing_is_loaded_anew(tmp_path: Path) -> None:
    device = Device(tmp_path)
    device.store.install(*publish(1).args)
    device.personal.refresh("run")
    with pytest.raises(ModelError, match="no model yet"):
        device.predict()
