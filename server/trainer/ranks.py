"""The trainer's processes: one alone, or those that ``torchrun`` started.

Rank 0 serves and announces jobs through the rendezvous store; the others poll the store for the
next one, so that an idle trainer waits in no collective and meets no collective's timeout. A job
begins only when every rank has said that it is ready.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fedge.errors import TransportError
from fedge.params import Vector

POLL_S = 0.02
HEARTBEAT_S = 1.0
SILENCE_S = 30.0
READY_S = 10.0
# Gloo raises plain RuntimeErrors, which name the source file or the place of the failure.
_OF_COLLECTIVES = ("/gloo/", "nccl", "connection closed by peer", "timed out waiting")
_DISMISSED = "dismissed"
_GO, _SKIP = "go", "skip"

log = logging.getLogger(__name__)


class Ranks(Protocol):
    """What the processes of one trainer do together.

    Attributes:
        lost: set once ranks are gone or out of step; all of them must then be started anew.
    """

    rank: int
    size: int
    lost: threading.Event

    def add_up(self, buffer: Tensor) -> None:
        """Replace the buffer by its sum over all ranks.

        Raises:
            TransportError: a rank was lost.
        """
        ...

    def announce(self, job: str, weights: Vector) -> None:
        """Hand a job to every other rank; rank 0 only.

        Raises:
            TransportError: a rank does not answer.
        """
        ...

    def close(self) -> None:
        """Dismiss the other ranks (rank 0) and leave."""
        ...


class Solo:
    """One process alone."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.lost = threading.Event()

    def add_up(self, buffer: Tensor) -> None:
        """Leave the buffer: it is the sum."""

    def announce(self, job: str, weights: Vector) -> None:
        """Tell nobody: there is nobody."""

    def close(self) -> None:
        """Do nothing."""


class TorchRanks:
    """Processes started by ``torchrun``, on gloo.

    Args:
        store: shared by all ranks, and by nothing else under these keys.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.lost = threading.Event()
        self._store = store
        self._num_jobs = 0
        self._closed = threading.Event()
        if rank == 0:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def add_up(self, buffer: Tensor) -> None:
        """Replace the buffer by its sum over all ranks."""
        try:
            dist.all_reduce(buffer)
        except RuntimeError as error:
            _lost(error)

    def announce(self, job: str, weights: Vector) -> None:
        """Hand a job and the weights to every other rank; waits until all are ready."""
        number, self._num_jobs = self._num_jobs, self._num_jobs + 1
        try:
            self._store.set(f"job/{number}", job)
            silent = self._silent_ranks(number)
            self._store.set(f"go/{number}", _SKIP if silent else _GO)
            if silent:
                raise TransportError(f"trainer ranks {silent} did not answer in {READY_S:g} s")
            dist.broadcast(torch.tensor(weights), 0)
            self._forget(number - 1)
        except RuntimeError as error:
            _lost(error)

    def receive(self, weights: Tensor, stop: threading.Event) -> str | None:
        """Return the next job and fill in its weights; None when it is time to leave.

        Raises:
            TransportError: rank 0 is gone.
        """
        try:
            while self._wait_for(f"job/{self._num_jobs}", stop):
                number, self._num_jobs = self._num_jobs, self._num_jobs + 1
                job: str = self._store.get(f"job/{number}").decode()
                if job == _DISMISSED:
                    return None
                self._store.set(f"ready/{number}/{self.rank}", "")
                if not self._wait_for(f"go/{number}", stop):
                    return None
                if self._store.get(f"go/{number}").decode() == _GO:
                    dist.broadcast(weights, 0)
                    return job
        except RuntimeError as error:
            _lost(error)
        return None

    def close(self) -> None:
        """Dismiss the other ranks (rank 0) and leave the process group."""
        self._closed.set()
        try:
            if self.rank == 0:
                self._store.set(f"job/{self._num_jobs}", _DISMISSED)
            if dist.is_initialized():
                dist.destroy_process_group()
        except RuntimeError as error:  # the others are gone already: nothing is left to leave
            log.debug("leaving the process group: %s", error)

    def _silent_ranks(self, number: int) -> list[int]:
        waiting = list(range(1, self.size))
        deadline = time.monotonic() + READY_S
        while waiting and time.monotonic() < deadline:
            waiting = [r for r in waiting if not self._store.check([f"ready/{number}/{r}"])]
            if waiting:
                time.sleep(POLL_S)
        return waiting

    def _wait_for(self, key: str, stop: threading.Event) -> bool:
        """Poll until the key is there; False when told to stop.

        Raises:
            TransportError: rank 0 has sent no heartbeat for a while.
        """
        beats, heard = -1, time.monotonic()
        looked = 0.0
        while not stop.is_set():
            if self._store.check([key]):
                return True
            now = time.monotonic()
            if now - looked > HEARTBEAT_S:
                found, looked = self._store.add("heartbeat", 0), now
                beats, heard = (found, now) if found != beats else (beats, heard)
            if now - heard > SILENCE_S:
                raise TransportError(f"rank 0 of the trainer was silent for {SILENCE_S:g} s")
            stop.wait(POLL_S)
        return False

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            try:
                self._store.add("heartbeat", 1)
            except RuntimeError as error:  # torchrun was killed: nobody would ever stop us
                log.warning("the trainer's rendezvous store is gone: %s", error)
                self.lost.set()
                return

    def _forget(self, number: int) -> None:
        ready = [f"ready/{number}/{rank}" for rank in range(1, self.size)]
        for key in (f"job/{number}", f"go/{number}", *ready):
            self._store.delete_key(key)


def join_ranks(collective_timeout_s: float, backend: str = "gloo") -> Solo | TorchRanks:
    """Return the ranks that this process is one of, as ``torchrun`` tells in its environment.

    Raises:
        TransportError: the others cannot be met.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Solo()
    timeout = timedelta(seconds=collective_timeout_s)
    distributed_c10d.default_pg_timeout = timeout  # a mesh's groups would wait for 30 minutes
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        # torchrun keeps its store when it starts all anew: what is in it is of the dead.
        attempt = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            backend,
            store=PrefixStore("gloo", attempt),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        return TorchRanks(PrefixStore("fedge", attempt), rank, size)
    except (RuntimeError, ValueError) as error:
        raise TransportError(
            f"cannot meet the trainer's other ranks: {error}; check torchrun's arguments and, "
            "where the hostname does not resolve, set GLOO_SOCKET_IFNAME"
        ) from error


@contextmanager
def collective_errors() -> Iterator[None]:
    """Map what a lost rank makes the others raise in their collectives.

    Raises:
        TransportError: another rank was lost.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if isinstance(error, dist.DistError) or any(word in text for word in _OF_COLLECTIVES):
            _lost(error)
        raise


def _lost(error: RuntimeError) -> NoReturn:
    """Map what gloo and the store raise: both use RuntimeError and its subclasses."""
    raise TransportError(f"another rank of the trainer was lost: {error}") from error
