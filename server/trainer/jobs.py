"""Jobs of the trainer: run one after the other, by all ranks together."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch

from fedge.errors import RefineError, TaskError, TransportError
from fedge.params import Vector
from fedge.training.local import LocalTrainer
from server.trainer.loop import Control
from server.trainer.proxy_split import split_proxy
from server.trainer.ranks import TorchRanks
from server.trainer.refining import Refining
from server.trainer.spec import Cancelled, CutShort, Refinement, RefineSpec

HELD_OUT_FRACTION = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One refinement and the share of the proxy data that it trains on.

    Attributes:
        share: ``all``, or ``search``: less the held-out split that candidates are scored on.
        key: names it among checkpoints; empty keeps none.
    """

    spec: RefineSpec
    share: Literal["all", "search"] = "all"
    key: str = ""

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return Job(RefineSpec(**data["spec"]), data["share"], data["key"])


class JobRunner:
    """Runs jobs in a single thread of its own, rank 0 and followers in step.

    Attributes:
        num_done: refinements finished, searches left out.

    Raises:
        TaskError: the task has no proxy data.
    """

    def __init__(self, refining: Refining) -> None:
        self.task = refining.task
        self.ranks = refining.ranks
        self.num_done = 0
        self._refining = refining
        self._trainer = LocalTrainer(refining.task)
        self.layout = self._trainer.layout
        self._proxy = refining.data.proxy
        if len(self._proxy) == 0:
            raise TaskError(
                f"task {self.task.name} has no proxy data: there is nothing to refine on"
            )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refine")
        self._ends: float | None = None  # monotonic; of the job that runs

    @property
    def overdue_s(self) -> float:
        """Seconds that the running job's deadline is past: it hangs if that is long."""
        ends = self._ends
        return 0.0 if ends is None else max(0.0, time.monotonic() - ends)

    @property
    def num_examples(self) -> int:
        """Number of proxy examples."""
        return len(self._proxy)

    def start(self, job: Job, weights: Vector, control: Control) -> Future[Refinement]:
        """Queue a job on rank 0; its future fails with `RefineError`."""
        try:
            return self._thread.submit(self._lead, job, weights, control)
        except RuntimeError as error:  # what an executor raises once it was shut down
            raise RefineError("the trainer is shutting down") from error

    def score(self, weights: Vector, seed: int) -> float:
        """Return the mean loss on the held-out split of the proxy data."""
        _, held_out = split_proxy(self._proxy, seed, HELD_OUT_FRACTION)
        losses = self._thread.submit(self._trainer.losses, weights, held_out)
        return float(np.mean(losses.result()))

    def follow(self, stop: threading.Event) -> None:
        """Take part in rank 0's jobs until it or the event says stop.

        Raises:
            TransportError: rank 0 was lost.
        """
        assert isinstance(self.ranks, TorchRanks)
        weights = torch.empty(self.layout.size, dtype=torch.float32)
        while (text := self.ranks.receive(weights, stop)) is not None:
            try:
                control = Control(should_stop=stop.is_set)
                self._run(Job.from_json(text), weights.numpy(), control)
            except RefineError as error:  # rank 0 fails at the same step and tells the caller
                log.info("%s", error)

    def close(self) -> None:
        """Finish the running job, drop those that wait, and dismiss the other ranks."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if not self.ranks.lost.is_set():
            self._refining.checkpoints.close()
        self.ranks.close()

    def _lead(self, job: Job, weights: Vector, control: Control) -> Refinement:
        if control.should_stop():
            raise RefineError("the refinement was cancelled before its first step")
        self._ends = time.monotonic() + job.spec.deadline_s
        try:
            self.ranks.announce(job.to_json(), weights)
            refinement = self._run(job, weights, control)
        except TransportError as error:
            self.ranks.lost.set()
            raise CutShort(str(error)) from error
        except Cancelled as error:
            if control.should_stop():
                raise
            raise CutShort(f"another rank was told to stop: {error}") from error
        except RefineError:  # all ranks stopped at the same step
            raise
        except Exception as error:  # a task's own code may raise anything; callers get one kind
            log.exception("refinement of round %d failed", job.spec.round)
            if self.ranks.size > 1:  # who knows at which step the others are
                self.ranks.lost.set()
            raise RefineError(f"the task failed: {type(error).__name__}: {error}") from error
        finally:
            self._ends = None
        self.num_done += job.share == "all"
        return refinement

    def _run(self, job: Job, weights: Vector, control: Control) -> Refinement:
        spec = job.spec
        if job.share == "search":
            spec = replace(spec, held_out=HELD_OUT_FRACTION)
        return self._refining.run(weights, spec, control, key=job.key)
