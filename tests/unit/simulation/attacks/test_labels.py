"""Attacks on labels."""

import numpy as np

from fedge.task import Examples
from simulation.attacks.contracts import DATA_ATTACKS
from simulation.settings import AttackConfig


def test_label_flip_mirrors_the_labels_and_leaves_the_inputs() -> None:
    examples = Examples(np.zeros((4, 2), np.float32), np.array([0, 1, 8, 9]))
    flipped = DATA_ATTACKS["label-flip"](AttackConfig()).poison(examples)
    np.testing.assert_array_equal(flipped.targets, [9, 8, 1, 0])
    assert flipped.targets.dtype == examples.targets.dtype
    assert flipped.inputs is examples.inputs
    three = DATA_ATTACKS["label-flip"](AttackConfig(num_classes=3))
    assert three.poison(examples.subset(np.array([0, 1]))).targets.tolist() == [2, 1]
