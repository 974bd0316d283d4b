"""From committed weights to what a device runs: patched into TFLite, and checked against torch.

A version is exported only if the patched model answers as the torch model does; those inputs and
answers travel with it, and each device repeats the check with its own runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedge.errors import ModelError
from fedge.manifest import Blob, SelfTest
from fedge.params import Layout, Vector
from fedge.rng import stream
from fedge.task import EdgeFiles, Task
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from fedge.tflite.selftest import encode_self_test, run_self_test
from fedge.weights import write_vector

NUM_SELF_TEST_EXAMPLES = 4
TOLERANCE = 1e-4

Convert = Callable[[Path], EdgeFiles]


@dataclass(frozen=True)
class ExportedModel:
    """A version's contents, before they are signed.

    Attributes:
        weights: the flat float32 vector, little-endian.
        self_test_content: what `self_test` names.
    """

    layout: Layout
    weights: bytes
    template: bytes
    plan: bytes
    self_test: SelfTest
    self_test_content: bytes


class Exporter:
    """Exports one task's weights; the template is read or converted once.

    Args:
        task: its ``edge_files``, if it has any, save the conversion.
        folder: keeps a converted template and its plan.
        convert: converts the task's model into a folder; called at most once a folder.
    """

    def __init__(self, task: Task, folder: Path, convert: Convert) -> None:
        self._task = task
        self._folder = folder
        self._convert = convert
        self._patcher: Patcher | None = None
        self._template = b""
        self._plan = b""

    def export(self, layout: Layout, weights: Vector) -> ExportedModel:
        """Return the version that these weights make, after it has passed its self-test.

        Raises:
            ModelError: the template cannot be had or patched, or answers otherwise than torch.
        """
        patcher = self._load(layout)
        runner = Runner(patcher.patch(layout, weights))
        inputs = self_test_inputs(self._task)
        expected = self._answers(layout, weights, inputs)
        run_self_test(runner.run, inputs.astype(runner.input_dtype), expected, TOLERANCE)
        content = encode_self_test(inputs, expected)
        return ExportedModel(
            layout=layout,
            weights=weights.astype("<f4", copy=False).tobytes(),
            template=self._template,
            plan=self._plan,
            self_test=SelfTest(Blob.of(content), inputs.shape, expected.shape, TOLERANCE),
            self_test_content=content,
        )

    def _answers(
        self, layout: Layout, weights: Vector, inputs: npt.NDArray[np.float32]
    ) -> npt.NDArray[Any]:
        """Return the torch model's float32 outputs ``[B, ...]``."""
        model = self._task.build_model()
        write_vector(model, layout, weights)
        model.eval()
        with torch.inference_mode():
            outputs: npt.NDArray[Any] = model(torch.from_numpy(inputs)).numpy().astype(np.float32)
        if not np.isfinite(outputs).all():
            raise ModelError("self-test: the torch model itself answers with NaN or infinity")
        return outputs

    def _load(self, layout: Layout) -> Patcher:
        if self._patcher is None:
            files = self._task.edge_files() or self._converted(layout)
            try:
                self._template = files.template.read_bytes()
                self._plan = files.plan.read_bytes()
            except OSError as error:
                raise ModelError(f"cannot read {error.filename}: {error.strerror}") from error
            self._patcher = Patcher.from_bytes(self._template, self._plan)
        return self._patcher

    def _converted(self, layout: Layout) -> EdgeFiles:
        """Return the converted files of this layout; a kill midway converts again."""
        folder = self._folder / layout.digest[:16]
        files = EdgeFiles(folder / "template.tflite", folder / "plan.json")
        if files.template.is_file() and files.plan.is_file():
            return files
        return self._convert(folder)


def self_test_inputs(task: Task) -> npt.NDArray[np.float32]:
    """Return inputs ``[B, ...]`` in [0, 1), the same for every version of a task."""
    generator = stream(0, f"self-test:{task.name}")
    shape = (NUM_SELF_TEST_EXAMPLES, *task.input_shape)
    return generator.random(shape, dtype=np.float32)
