"""Which accepted refinements did harm on the test set, beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binom

from fedge.params import Vector
from fedge.task import Examples, Task
from fedge.weights import layout_of, write_vector
from server.checkpoint import CheckpointStore
from server.refine import Refiner
from server.trainer.spec import Refinement

BATCH = 500

Correct = npt.NDArray[np.bool_]


class Witness:
    """A refiner that notes what it was given, and afterwards what became of it.

    Args:
        inner: what refines.
        run_dir: of the federation.

    Attributes:
        drops: for each accepted refinement its round, the test images that only the aggregate
            or only the committed weights name right, and the p-value of a drop.
    """

    def __init__(self, inner: Refiner, task: Task, run_dir: Path) -> None:
        self._inner = inner
        self._task = task
        self._test = task.cloud_data().test
        self._checkpoints = CheckpointStore(run_dir / "checkpoints")
        self._given: tuple[int, Vector] | None = None
        self.drops: list[dict[str, Any]] = []

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        """Refine, and remember the aggregate."""
        self._given = (round, weights)
        return self._inner.refine(weights, round=round, deadline_s=deadline_s)

    def close(self) -> None:
        """Release what the refiner holds."""
        self._inner.close()

    def look(self, metrics: dict[str, Any]) -> None:
        """Compare a committed round's weights with its aggregate, if a refinement was accepted."""
        if metrics["refinement"] != "accepted":
            return
        committed = self._checkpoints.latest()
        assert committed is not None
        assert self._given is not None
        assert committed.round == self._given[0] == metrics["round"]
        before = is_correct(self._task, self._given[1], self._test)
        after = is_correct(self._task, committed.weights, self._test)
        lost, won = int((before & ~after).sum()), int((after & ~before).sum())
        self.drops.append(
            {"round": committed.round, "lost": lost, "won": won, "p": p_of_drop(lost, won)}
        )


@torch.no_grad()
def is_correct(task: Task, weights: Vector, examples: Examples) -> Correct:
    """Return whether each example's class is named right, ``[N]``."""
    model = task.build_model().eval()
    write_vector(model, layout_of(model), weights)
    parts = torch.split(torch.from_numpy(examples.inputs), BATCH)
    named = torch.cat([model(part).argmax(dim=1) for part in parts]).numpy()
    found: Correct = named == examples.targets
    return found


def p_of_drop(lost: int, won: int) -> float:
    """Return the one-sided p-value of McNemar's exact test that more was lost than won."""
    return float(binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0


def num_significant(p_values: Sequence[float], level: float) -> int:
    """Return how many hypotheses are rejected by Holm's method."""
    for count, p_value in enumerate(sorted(p_values)):
        if p_value > level / (len(p_values) - count):
            return count
    return len(p_values)
