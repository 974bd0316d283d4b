"""Checkpoints within a refinement: a trainer that was started anew goes on where it was."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException  # a BaseException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from server.trainer.spec import CutShort

# What it says of a process without others is no news.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

COMPLETE = ".metadata"  # written last
NUM_KEPT = 2
REFINEMENTS = "refinements"
WRITE_S = 600.0  # that the ranks wait for the slowest disk

log = logging.getLogger(__name__)


class Checkpoints(Protocol):
    """Keeps the state of the running refinement; every rank calls it alike, but for `due`."""

    def due(self) -> bool:
        """Tell whether it is time to save; asked by each rank, one is enough."""
        ...

    def save(self, key: str, step: int, state: dict[str, Any]) -> None:
        """Keep a refinement's state after this many steps; training may go on at once."""
        ...

    def restore(self, key: str, state: dict[str, Any]) -> bool:
        """Load the last state of this refinement into these tensors; False where there is none.

        Checkpoints of other refinements are removed.

        Raises:
            CutShort: it is damaged; the tensors may be, too.
            RuntimeError: another rank was lost; the checkpoint stays.
        """
        ...

    def close(self) -> None:
        """Wait for what is being written."""
        ...


class NoCheckpoints:
    """A refinement that was cut short begins anew."""

    def due(self) -> bool:
        """Return False."""
        return False

    def save(self, key: str, step: int, state: dict[str, Any]) -> None:
        """Keep nothing."""

    def restore(self, key: str, state: dict[str, Any]) -> bool:  # noqa: ARG002
        """Return False."""
        return False

    def close(self) -> None:
        """Do nothing."""


class DcpCheckpoints:
    """Distributed checkpoints in a folder that all ranks see, written beside the training.

    They hold whole tensors by name, whatever mesh wrote them: another mesh can go on from them.

    Args:
        folder: of this trainer alone.
        interval_s: seconds between the beginnings of two checkpoints.
    """

    def __init__(self, folder: Path, interval_s: float) -> None:
        self._folder = folder / REFINEMENTS  # all else in the folder is somebody's
        self._interval_s = interval_s
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._group = _own_group()
        self._last = time.monotonic()
        self._writing: Future[Any] | None = None

    def due(self) -> bool:
        """Tell, on rank 0, whether the interval is over and nothing is being written."""
        if self._rank > 0 or time.monotonic() - self._last < self._interval_s:
            return False
        return self._writing is None or self._writing.done()

    def save(self, key: str, step: int, state: dict[str, Any]) -> None:
        """Write a copy of the state in a thread."""
        self._finish_writing()
        self._last = time.monotonic()
        if self._rank == 0:
            self._remove_old(key, step)
        self._writing = async_save(  # type: ignore[assignment]
            state,
            checkpoint_id=self._folder_of(key, step),
            process_group=self._group,
            no_dist=self._group is None,
        )

    def restore(self, key: str, state: dict[str, Any]) -> bool:
        """Load the newest complete checkpoint; rank 0 chooses it for all."""
        self._finish_writing()
        self._last = time.monotonic()
        found = [next(reversed(list(self._complete(key))), None) if self._rank == 0 else None]
        if self._group is not None:
            dist.broadcast_object_list(found, 0, group=self._group)
        if self._rank == 0 and self._folder.is_dir():
            for other in self._folder.iterdir():
                if other.name != key:
                    shutil.rmtree(other, ignore_errors=True)
        if found[0] is None:
            return False
        try:
            load(
                state,
                checkpoint_id=found[0],
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as error:  # what any rank could not read, told to all of them
            if self._rank == 0:
                shutil.rmtree(found[0], ignore_errors=True)
            log.warning("checkpoint %s is damaged and was removed", found[0])
            raise CutShort("a checkpoint is damaged: the one before it is next") from error
        self._last = time.monotonic()
        return True

    def close(self) -> None:
        """Wait for what is being written."""
        self._finish_writing()

    def _finish_writing(self) -> None:
        if self._writing is None:
            return
        try:
            self._writing.result()
        except (Exception, CheckpointException) as error:  # a full disk: the refinement is well
            log.warning("a checkpoint could not be written: %s: %s", type(error).__name__, error)
        self._writing = None

    def _remove_old(self, key: str, step: int) -> None:
        """Leave the newest; what was not finished is of no use and may have filled the disk."""
        kept = {*list(self._complete(key))[-NUM_KEPT:], self._folder_of(key, step)}
        for each in (self._folder / key).glob("step-*"):
            if each not in kept:
                shutil.rmtree(each, ignore_errors=True)

    def _folder_of(self, key: str, step: int) -> Path:
        return self._folder / key / f"step-{step:08d}"

    def _complete(self, key: str) -> Iterator[Path]:
        """Yield complete checkpoints, the oldest first."""
        for each in sorted((self._folder / key).glob("step-*")):
            if (each / COMPLETE).is_file():
                yield each


def _own_group() -> dist.ProcessGroup | None:
    """Return a group of all ranks: a thread's collectives must not mix with those of the steps."""
    if not dist.is_initialized():
        return None
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=timedelta(seconds=WRITE_S))
    return group
