from pathlib import Path

import numpy as np
import pytest

import fedge.tasks
from fedge.errors import ModelError
from fedge.tflite.patch import Patcher
from fedge.tflite.runner import Runner

FOLDER = Path(fedge.tasks.__file__).parent / "digits_edge"
TEMPLATE = (FOLDER / "template.tflite").read_bytes()
PATCHER = Patcher.from_bytes(TEMPLATE, (FOLDER / "plan.json").read_bytes())


def mlp(inputs: np.ndarray) -> np.ndarray:
    """Compute what the digits model computes, in float64."""
    views = PATCHER.plan.layout.views(PATCHER.shipped_weights())
    first, first_bias, last, last_bias = (views[name].astype(np.float64) for name in views)
    return np.maximum(inputs @ first.T + first_bias, 0) @ last.T + last_bias


@pytest.mark.parametrize("size", [0, 1, 2, 31, 32, 33, 64, 70])
def test_a_batch_of_any_length_gives_each_example_its_answer(size: int) -> None:
    inputs = np.random.default_rng(size).random((size, 64), np.float32)
    outputs = Runner(TEMPLATE).run(inputs)
    assert outputs.shape == (size, 10)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, mlp(inputs), rtol=1e-5, atol=1e-5)


def test_one_example_equals_a_batch_of_one_and_both_work_after_a_large_batch() -> None:
    runner = Runner(TEMPLATE)
    inputs = np.random.default_rng(1).random((40, 64), np.float32)
    batch = runner.run(inputs)
    for example, answer in zip(inputs, batch, strict=True):
        np.testing.assert_allclose(runner.run_one(example), answer, rtol=1e-6, atol=1e-6)


def test_strided_inputs_are_read_as_they_look() -> None:
    inputs = np.random.default_rng(2).random((64, 33), np.float32).T
    np.testing.assert_allclose(Runner(TEMPLATE).run(inputs), mlp(inputs), rtol=1e-5, atol=1e-5)


def test_an_answer_stays_as_it_was_when_the_next_one_is_computed() -> None:
    runner = Runner(TEMPLATE)
    first = runner.run_one(np.zeros(64, np.float32))
    kept = first.copy()
    runner.run_one(np.ones(64, np.float32))
    assert np.array_equal(first, kept)


def test_the_runtime_refusing_an_input_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="runtime failed"):
        Runner(TEMPLATE).run_one(np.zeros(63, np.float32))
