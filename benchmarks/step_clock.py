"""Times the steps of a refinement but the first, which warms up."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class StepClock:
    """Is told of each step, as the trainer's progress is."""

    first: float = 0.0
    last: float = 0.0

    def tick(self, step: int, *_: object) -> None:
        """Note that a step is done."""
        now = time.perf_counter()
        self.first = now if step == 1 else self.first
        self.last = now

    @property
    def seconds(self) -> float:
        """Seconds from the end of the first step to the end of the last."""
        return self.last - self.first
