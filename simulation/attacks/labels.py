"""Attacks on the labels of a client's own examples."""

from __future__ import annotations

from fedge.task import Examples
from simulation.attacks.contracts import DATA_ATTACKS
from simulation.settings import AttackConfig


@DATA_ATTACKS.register("label-flip")
class LabelFlip:
    """Label y becomes ``num_classes - 1 - y``; the training is honest."""

    def __init__(self, config: AttackConfig) -> None:
        self._last = config.num_classes - 1

    def poison(self, examples: Examples) -> Examples:
        """Return the same inputs with flipped labels."""
        flipped = (self._last - examples.targets).astype(examples.targets.dtype, copy=False)
        return Examples(examples.inputs, flipped)
