"""When a refinement runs: between aggregation and commit, or beside the next round's training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from fedge.errors import RefineError
from fedge.naming import Registry
from fedge.params import Layout, Vector
from server.refine import IN_PROCESS, Refiner
from server.settings import RefineConfig
from server.trainer.spec import Refinement

GRACE_S = 5.0
"""A refiner keeps its deadline itself; so much later it is taken to hang."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proposal:
    """What a refinement makes of an aggregate.

    Attributes:
        weights: the aggregate plus what the refinement changed.
        refinement: how it went.
        staleness: rounds between the weights that were refined and the aggregate.
    """

    weights: Vector
    refinement: Refinement
    staleness: int


class Mode(Protocol):
    """One way to fit refinements between rounds."""

    def serves(self, round: int) -> bool:
        """Tell whether there is anything to take for a round's aggregate."""
        ...

    def take(self, round: int, aggregate: Vector) -> Proposal | None:
        """Return what is there for an aggregate; None while it is still under way.

        Raises:
            RefineError, UpdateRejected: it failed; nothing of it is left.
        """
        ...

    def begin(self, round: int, weights: Vector) -> bool:
        """Start from the weights that a round ended with; tell whether anything was started."""
        ...

    def drop(self) -> None:
        """Forget what is under way."""
        ...


MODES: Registry[Callable[[RefineConfig, Layout, Refiner], Mode]] = Registry("refinement mode")


@MODES.register("sequential")
class Sequential:
    """Refines an aggregate while everybody waits."""

    def __init__(self, config: RefineConfig, layout: Layout, refiner: Refiner) -> None:
        self._config = config
        self._layout = layout
        self._refiner = refiner

    def serves(self, round: int) -> bool:
        """Tell whether a refinement is due."""
        return round % self._config.every_rounds == 0

    def take(self, round: int, aggregate: Vector) -> Proposal | None:
        """Refine the aggregate."""
        found = self._refiner.refine(aggregate, round=round, deadline_s=self._config.deadline_s)
        return Proposal(self._layout.check(found.weights), found, 0)

    def begin(self, round: int, weights: Vector) -> bool:  # noqa: ARG002
        """Start nothing."""
        return False

    def drop(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _UnderWay:
    round: int
    start: Vector
    began_at: float
    work: Callable[[], Refinement]
    future: Future[Refinement]


@MODES.register("overlapped")
class Overlapped:
    """Refines what a round ended with while the next one's devices train.

    What it changed is added to the first aggregate that comes after it is done. In process there
    is nothing to overlap with: there it is computed when it is asked for, to the same weights.
    """

    def __init__(self, config: RefineConfig, layout: Layout, refiner: Refiner) -> None:
        self._config = config
        self._layout = layout
        self._refiner = refiner
        self._in_background = config.trainer != IN_PROCESS
        self._under_way: _UnderWay | None = None

    def serves(self, round: int) -> bool:
        """Tell whether a refinement is under way from an earlier round."""
        return self._under_way is not None and self._under_way.round < round

    def take(self, round: int, aggregate: Vector) -> Proposal | None:
        """Return the aggregate plus what the refinement changed, once it is done."""
        job = self._under_way
        assert job is not None
        if not self._in_background:
            _run(job.work, job.future)
        if not job.future.done():
            self._check_deadline(job)
            return None
        self._under_way = None
        try:
            found = job.future.result()
        except RefineError:
            raise
        except Exception as error:  # in a thread of ours nobody else would see it
            log.exception("the refinement of round %d failed", job.round)
            raise RefineError(f"refinement failed: {type(error).__name__}: {error}") from error
        change = self._layout.check(found.weights) - job.start
        return Proposal(aggregate + change, found, round - job.round)

    def begin(self, round: int, weights: Vector) -> bool:
        """Start to refine the weights, unless a refinement is not due or still under way."""
        if self._under_way is not None or round % self._config.every_rounds:
            return False
        start, deadline_s = weights.copy(), self._config.deadline_s

        def work() -> Refinement:
            return self._refiner.refine(start, round=round, deadline_s=deadline_s)

        job = _UnderWay(round, start, time.monotonic(), work, Future())
        self._under_way = job
        if self._in_background:
            # A daemon: a refiner that hangs must not keep the process from ending.
            threading.Thread(
                target=_run, args=(work, job.future), name="refinement", daemon=True
            ).start()
        return True

    def drop(self) -> None:
        """Forget what is under way; its thread ends by its own deadline."""
        self._under_way = None

    def _check_deadline(self, job: _UnderWay) -> None:
        if time.monotonic() - job.began_at > self._config.deadline_s + GRACE_S:
            self._under_way = None
            raise RefineError(
                f"the refinement of round {job.round} hangs: its deadline of "
                f"{self._config.deadline_s:g} s has long passed"
            )


def _run(work: Callable[[], Refinement], future: Future[Refinement]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
