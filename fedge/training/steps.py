"""Which examples each step of a client's training takes, held as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Steps(Sequence[Tensor]):
    """Positions of each step's examples, ``[B_t]`` int64; cut up when somebody asks for a step.

    To cut them for every client of a cohort would take longer than to draw them.

    Attributes:
        order: the positions of all steps one after another.
        lengths: B_t of each step, ``[T]``.
    """

    def __init__(self, order: Tensor, lengths: npt.NDArray[np.int64]) -> None:
        self.order = order
        self.lengths = lengths

    @staticmethod
    def of(steps: Sequence[Tensor]) -> Steps:
        """Join steps that were drawn one by one."""
        lengths = np.array([len(step) for step in steps], np.int64)
        order = torch.cat(list(steps)) if len(steps) else torch.empty(0, dtype=torch.int64)
        return Steps(order, lengths)

    def __len__(self) -> int:
        """Return how many steps there are."""
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, at: Any) -> Any:
        """Return one step, or several."""
        return self._parts[at]

    @cached_property
    def _parts(self) -> list[Tensor]:
        return list(torch.split_with_sizes(self.order, self.lengths.tolist()))
