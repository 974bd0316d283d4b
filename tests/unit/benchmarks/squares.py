"""Work for a child process, which imports it by name."""

import os
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Square:
    number: int

    @property
    def key(self) -> str:
        return f"square-{self.number}"


def square(job: Square) -> dict[str, Any]:
    if job.number < 0:
        raise ValueError("no root")
    return {"value": job.number**2, "process": os.getpid(), "threads": torch.get_num_threads()}
