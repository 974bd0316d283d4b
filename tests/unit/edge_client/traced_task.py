"""A task that writes down each step it begins, so that a test can count those that were lost."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.tiny_task import TinyTask


@dataclass(frozen=True)
class TracedTask(TinyTask):
    """Appends a byte to a file each time the loss is asked for; one step asks once.

    Attributes:
        greedy_mib: allocated in each step.
    """

    trace: str = ""
    greedy_mib: int = 0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        descriptor = os.open(self.trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b".")
        os.close(descriptor)
        if self.greedy_mib:
            torch.ones(self.greedy_mib << 18)
        return super().loss(outputs, targets)
