"""What ranks tell each other before each step, so that all of them do the same."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch

from server.trainer.ranks import Ranks


@dataclass(frozen=True)
class Signs:
    """What one rank sees, or any of them.

    Attributes:
        cancelled: the caller left.
        late: the deadline passed.
        spent: the budget is used up.
        keep: it is time for a checkpoint.
    """

    cancelled: bool
    late: bool
    spent: bool
    keep: bool

    def of_any(self, ranks: Ranks) -> Signs:
        """Return which of them any rank sees."""
        if ranks.size == 1:
            return self
        numbers = torch.tensor(astuple(self), dtype=torch.float32)
        ranks.add_up(numbers)
        return Signs(*(number > 0 for number in numbers.tolist()))
