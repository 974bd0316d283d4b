"""What the prediction benchmarks compare answers alike, and a load that fails is not counted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.edge_models import NAMES, make_edge_model
from benchmarks.harness import CannotRun
from benchmarks.infer_profile import EXTRAS, _requirements
from benchmarks.inference import _engine
from benchmarks.prediction_load import requests_per_s
from edge_client.inference import Engine, Version


@pytest.mark.parametrize("name", NAMES)
def test_tflite_and_torch_have_the_same_weights(name: str) -> None:
    model = make_edge_model(name)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(model.inputs)).numpy()
    answers = Engine(model.content, Version(0, "")).predict(model.inputs)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(answers, expected, atol=1e-4)


def test_every_side_of_the_engine_is_timed() -> None:
    found = _engine(make_edge_model("digits"), num_turns=2, num_calls=5)
    assert min(found[f"{side}_p50_us"] for side in ("bare", "ours", "torch")) > 0


def test_a_load_without_a_device_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"nobody\.sock"):
        requests_per_s(f"unix:{tmp_path / 'nobody.sock'}", 2, 0.1)


def test_the_profiles_need_no_torch() -> None:
    for extra in EXTRAS:
        assert not [name for name in _requirements(extra) if name.startswith(("torch", "flwr"))]
