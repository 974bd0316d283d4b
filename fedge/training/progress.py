"""What a run of training steps came to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Progress:
    """Steps taken and the losses seen on the way.

    Attributes:
        total_loss: sum over every example that a step trained on, each time it did.
    """

    num_steps: int = 0
    num_examples: int = 0
    total_loss: float = 0.0

    def add_losses(self, losses: Tensor) -> None:
        """Count the examples of a batch (or a part of one) and their losses."""
        self.num_examples += len(losses)
        self.total_loss += losses.detach().double().sum().item()

    @property
    def loss(self) -> float:
        """Mean loss an example; NaN if no step drew any."""
        return self.total_loss / self.num_examples if self.num_examples else math.nan
