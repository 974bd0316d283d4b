"""What counts as harm, against SciPy's own tests and Holm's method by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from benchmarks.harm import is_correct, num_significant, p_of_drop
from fedge.training.local import LocalTrainer
from tests.tiny_task import TinyTask


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_drop_is_tested_by_the_images_on_which_the_two_differ(lost: int, won: int) -> None:
    total = lost + won
    expected = binomtest(lost, total, 0.5, alternative="greater").pvalue if total else 1.0
    assert p_of_drop(lost, won) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_as_its_adjusted_p_values_say(p_values: list[float], level: float) -> None:
    adjusted, largest = [], 0.0
    for rank, p_value in enumerate(sorted(p_values)):
        largest = max(largest, (len(p_values) - rank) * p_value)
        adjusted.append(largest)
    sure = sum(value <= level * (1 - 1e-9) for value in adjusted)
    most = sum(value <= level * (1 + 1e-9) for value in adjusted)
    assert sure <= num_significant(p_values, level) <= most


def test_what_is_correct_agrees_with_the_accuracy() -> None:
    task = TinyTask()
    trainer, test = LocalTrainer(task), task.cloud_data().test
    weights = trainer.initial_weights(0)
    found = is_correct(task, weights, test)
    assert found.shape == (len(test),)
    assert np.mean(found) == pytest.approx(trainer.evaluate(weights, test)["accuracy"])
