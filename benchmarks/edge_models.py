"""The models whose predictions are timed: as TFLite bytes and as torch modules, same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import fedge.tasks
from benchmarks.harness import CannotRun
from benchmarks.peers.work import CNN, MLP, build_model
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from fedge.weights import layout_of, write_vector

_FOLDERS = {
    MLP: Path(fedge.tasks.__file__).parent / "digits_edge",  # the digits model has these layers
    CNN: Path(__file__).parent / "models" / "cnn",
}
NAMES = {"digits": MLP, "cnn": CNN}


@dataclass(frozen=True)
class EdgeModel:
    """One model, twice.

    Attributes:
        inputs: ``[32, ...]``, random.
    """

    name: str
    content: bytes
    module: nn.Module
    inputs: npt.NDArray[Any]


def make_edge_model(name: str) -> EdgeModel:
    """Return ``digits`` or ``cnn`` with random weights of seed 0.

    Raises:
        CannotRun: the two do not answer alike.
    """
    folder = _FOLDERS[NAMES[name]]
    patcher = Patcher.from_bytes(
        (folder / "template.tflite").read_bytes(), (folder / "plan.json").read_bytes()
    )
    rng = np.random.default_rng(0)
    module = build_model(NAMES[name]).eval()
    layout = layout_of(module)
    weights = rng.normal(0, 0.1, layout.size).astype(np.float32)
    write_vector(module, layout, weights)
    # Names differ between a task's layout and the bare module's; their order does not.
    content = patcher.patch(patcher.plan.layout, weights)
    runner = Runner(content)
    inputs = rng.random((32, *runner.input_shape), np.float32)
    with torch.inference_mode():
        expected = module(torch.from_numpy(inputs)).numpy()
    if not np.allclose(runner.run(inputs), expected, atol=1e-3):
        raise CannotRun(f"{name}: TFLite and torch do not answer alike")
    return EdgeModel(name, content, module, inputs)
