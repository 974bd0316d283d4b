"""Worker processes on this machine, each with one thread and a pipe to the driver.

What passes through the pipes is pickled: both ends are this program, on this machine, and nothing
comes from the network.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from traceback import format_exc
from typing import Any

from fedge.children import die_with_parent
from fedge.errors import FedgeError, TaskError, TransportError
from fedge.messages import Evaluation, Refusal, WeightsRequest
from fedge.task import Task
from server.cohorts import CohortRequest
from simulation.engine.contracts import Run, ShardResult
from simulation.engine.memory import keep_memory
from simulation.engine.run_order import RunOrder
from simulation.engine.shard_runner import ShardRunner
from simulation.settings import SimulateConfig

log = logging.getLogger(__name__)

_GRACE_S = 5.0


@dataclass(eq=False)
class _Worker:
    """One process; ``index`` is that of the run it works on, None while it is idle."""

    process: Any
    pipe: connection.Connection[Any, Any]
    request: int = -1
    index: int | None = None


class ProcessPool:
    """Hands runs to whichever worker is free and yields their results in order.

    Args:
        config: of the simulation.
        task: what is learnt; it travels to every worker once.
        num_workers: processes, started with the first run.
    """

    def __init__(self, config: SimulateConfig, task: Task, num_workers: int) -> None:
        self.num_workers = num_workers
        self._config = config
        self._task = task
        self._workers: list[_Worker] = []
        self._num_requests = 0

    def train(self, request: CohortRequest, runs: Sequence[Run]) -> Iterator[list[ShardResult]]:
        """Yield the shards of each run.

        Raises:
            TransportError: a worker was killed again and again.
        """
        return self._map("train", request, runs)

    def evaluate(
        self, request: WeightsRequest, runs: Sequence[Run]
    ) -> Iterator[list[Evaluation | Refusal]]:
        """Yield what the clients of each run measured."""
        return self._map("evaluate", request, runs)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        for worker in self._workers:
            worker.process.join(_GRACE_S)
            self._end(worker)
        self._workers.clear()

    def _map(self, kind: str, request: Any, runs: Sequence[Run]) -> Iterator[Any]:
        while len(self._workers) < self.num_workers:
            self._workers.append(self._start())
        self._num_requests += 1
        order = RunOrder(len(runs), self.num_workers)
        try:
            while not order.finished:
                self._hand_out(kind, request, runs, order)
                for worker in self._ready():
                    self._receive(worker, runs, order)
                yield from order.results()
        finally:
            # Whoever still works for a reader that left would answer the next request, which
            # starts others in their place.
            for worker in [worker for worker in self._workers if worker.index is not None]:
                self._end(worker)
                self._workers.remove(worker)

    def _hand_out(self, kind: str, request: Any, runs: Sequence[Run], order: RunOrder) -> None:
        for worker in [each for each in self._workers if each.index is None]:
            index = order.take()
            if index is None:
                return
            # The weights travel once a request, not once a run.
            known = worker.request == self._num_requests
            worker.request, worker.index = self._num_requests, index
            with contextlib.suppress(OSError):  # a dead worker is noticed when it is waited for
                worker.pipe.send((kind, None if known else request, runs[index]))

    def _ready(self) -> list[_Worker]:
        busy = {worker.pipe: worker for worker in self._workers if worker.index is not None}
        return [busy[pipe] for pipe in connection.wait(list(busy))]  # type: ignore[index]

    def _receive(self, worker: _Worker, runs: Sequence[Run], order: RunOrder) -> None:
        """Take a run's result; a run whose worker was killed is handed out again."""
        index, worker.index = worker.index, None
        assert index is not None
        try:
            result, failure = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(_GRACE_S)
            clients = runs[index].clients
            text = (
                f"a worker process ended with {worker.process.exitcode} while it trained clients "
                f"{clients[0]} to {clients[-1]}; if memory ran out, lower engine.workers or "
                "engine.memory_mib; a task that is defined in a notebook needs engine.workers = 1"
            )
            self._replace(worker)
            order.lost(index, text)
            log.warning("%s; another one does them again", text)
            return
        if failure is not None:
            raise failure
        order.put(index, result)

    def _replace(self, worker: _Worker) -> None:
        self._end(worker)
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # fork after torch hangs now and then
        ours, theirs = context.Pipe()
        arguments = (theirs, self._config, self._task)
        process = context.Process(target=_work, args=arguments, daemon=True, name="fedge-worker")
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _end(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _work(pipe: connection.Connection[Any, Any], config: SimulateConfig, task: Task) -> None:
    """Serve one pipe until it closes."""
    import torch

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's, which then ends us
    torch.set_num_threads(1)
    runner = ShardRunner(config, task)
    keep_memory()
    request: Any = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while (asked := pipe.recv()) is not None:
            kind, fresh, run = asked
            request = request if fresh is None else fresh
            try:
                work = runner.train if kind == "train" else runner.evaluate
                answer: tuple[Any, FedgeError | None] = (work(request, run), None)
            except TaskError as error:
                answer = (None, error)
            except Exception:  # boundary: told to the driver, which raises it
                answer = (None, TransportError(f"a worker process failed:\n{format_exc()}"))
            pipe.send(answer)
