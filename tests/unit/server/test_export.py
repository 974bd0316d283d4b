"""Exporting: the patched TFLite model answers as torch does, or there is no version."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fedge.errors import ModelError
from fedge.params import Layout, Vector
from fedge.task import EdgeFiles
from fedge.tasks.digits import Digits
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner
from fedge.tflite.selftest import decode_self_test
from fedge.weights import layout_of, read_vector
from server.export import NUM_SELF_TEST_EXAMPLES, TOLERANCE, Exporter, self_test_inputs

TASK = Digits()


def never(folder: Path) -> EdgeFiles:
    raise AssertionError(f"nothing should be converted, asked for {folder}")


def random_weights(seed: int) -> tuple[Layout, Vector]:
    torch.manual_seed(seed)
    model = TASK.build_model()
    layout = layout_of(model)
    return layout, read_vector(model, layout)


def shipped() -> EdgeFiles:
    files = TASK.edge_files()
    assert files is not None
    return files


class Unshipped(Digits):
    """The digits task as if it had no edge files."""

    def edge_files(self) -> EdgeFiles | None:
        return None


@dataclasses.dataclass(frozen=True)
class OtherModel(Digits):
    """A task whose torch model computes something else than its template."""

    def build_model(self) -> torch.nn.Module:
        model = super().build_model()
        model.append(torch.nn.Tanh())  # type: ignore[operator]
        return model


def test_an_export_holds_what_a_device_needs_to_repeat_the_check(tmp_path: Path) -> None:
    layout, weights = random_weights(1)
    found = Exporter(TASK, tmp_path, never).export(layout, weights)
    inputs, expected = decode_self_test(
        found.self_test_content, found.self_test.input_shape, found.self_test.output_shape
    )
    assert inputs.shape == (NUM_SELF_TEST_EXAMPLES, 64)
    assert found.self_test.tolerance == TOLERANCE == 1e-4
    received = np.frombuffer(found.weights, "<f4")
    model = Patcher.from_bytes(found.template, found.plan).patch(found.layout, received)
    np.testing.assert_allclose(Runner(model).run(inputs), expected, atol=1e-5)
    first = torch.from_numpy(weights[: 64 * 64].reshape(64, 64).copy())
    bias = torch.from_numpy(weights[64 * 64 : 64 * 65].copy())
    hidden = torch.relu(torch.from_numpy(inputs.copy()) @ first.T + bias).numpy()
    last = weights[64 * 65 : 64 * 75].reshape(10, 64)
    np.testing.assert_allclose(expected, hidden @ last.T + weights[64 * 75 :], atol=1e-5)


def test_the_inputs_are_the_same_for_every_version() -> None:
    np.testing.assert_array_equal(self_test_inputs(TASK), self_test_inputs(Digits(seed=5)))
    assert self_test_inputs(TASK).dtype == np.float32


def test_a_template_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    layout, weights = random_weights(2)
    with pytest.raises(ModelError, match=r"self-test: .* differ"):
        Exporter(OtherModel(), tmp_path, never).export(layout, weights)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    layout, weights = random_weights(4)
    weights[7] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        Exporter(TASK, tmp_path, never).export(layout, weights)


def test_a_task_without_edge_files_is_converted_once_a_layout(tmp_path: Path) -> None:
    asked: list[Path] = []

    def convert(folder: Path) -> EdgeFiles:
        asked.append(folder)
        folder.mkdir(parents=True)
        files = EdgeFiles(folder / "template.tflite", folder / "plan.json")
        files.template.write_bytes(shipped().template.read_bytes())
        files.plan.write_bytes(shipped().plan.read_bytes())
        return files

    layout, weights = random_weights(5)
    exporter = Exporter(Unshipped(), tmp_path, convert)
    exporter.export(layout, weights)
    exporter.export(layout, weights * 2)
    Exporter(Unshipped(), tmp_path, convert).export(layout, weights)
    assert len(asked) == 1


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    def convert(folder: Path) -> EdgeFiles:
        return EdgeFiles(folder / "template.tflite", folder / "plan.json")

    layout, weights = random_weights(6)
    with pytest.raises(ModelError, match=r"cannot read .*template\.tflite"):
        Exporter(Unshipped(), tmp_path, convert).export(layout, weights)
