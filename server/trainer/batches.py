"""Batches of a refinement: which rows, in which order, gathered before their step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

from fedge.rng import stream
from server.trainer.spec import RefineSpec

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Aims:
    """What a loss needs beside the outputs, row by row.

    Attributes:
        targets: ``[B, ...]``; those of unlabelled rows mean nothing.
        teacher: a teacher's outputs for these rows, ``[B, ...]``; None where there is none.
        labelled: which rows have targets, ``[B]``; None is all of them.
    """

    targets: Tensor
    teacher: Tensor | None = None
    labelled: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return those that there are, in order."""
        found = (self.targets, self.teacher, self.labelled)
        return tuple(each for each in found if each is not None)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Aims:
        """Return other rows of the same kind, from what their `tensors` returned."""
        targets, *rest = tensors
        teacher = None if self.teacher is None else rest.pop(0)
        return Aims(targets, teacher, None if self.labelled is None else rest.pop(0))


@dataclass(frozen=True)
class Rows:
    """Examples to train on: inputs ``[N, ...]`` and what they are to become."""

    inputs: Tensor
    aims: Aims

    def __len__(self) -> int:
        """Return N."""
        return len(self.inputs)


def draw_batches(num_examples: int, spec: RefineSpec) -> Iterator[npt.NDArray[Any]]:
    """Yield positions of one batch after the other, endlessly; each pass is shuffled anew."""
    rng = stream(spec.seed, "refine-batches", round=spec.round)
    size = min(spec.batch_size, num_examples)
    while True:
        order = rng.permutation(num_examples)
        for start in range(0, num_examples - size + 1, size):
            yield order[start : start + size]


@contextmanager
def prefetched(
    batches: Iterator[S], gather: Callable[[S], T], device: torch.device
) -> Iterator[Iterator[T]]:
    """Give gathered batches; for a GPU a thread gathers the next one while this one is trained on.

    On a CPU the thread would take its time from the training.
    """
    if device.type == "cpu":
        yield map(gather, batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:

        def ahead() -> Iterator[T]:
            coming: Future[T] = thread.submit(lambda: gather(next(batches)))
            while True:
                found, coming = coming.result(), thread.submit(lambda: gather(next(batches)))
                yield found

        yield ahead()
