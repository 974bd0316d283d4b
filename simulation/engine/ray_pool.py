"""Runs on the actors of a Ray cluster, over any number of machines.

What travels is pickled as a whole, as between the processes of one machine: arrays that Ray maps
from its object store are read-only, and neither tasks nor codecs expect that.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from fedge.errors import TaskError, TransportError
from fedge.messages import Evaluation, Refusal, WeightsRequest
from fedge.task import Task
from fedge.training.backend_choice import Choice, read_choice, write_choice
from server.cohorts import CohortRequest
from simulation.engine.contracts import SHARD_SIZE, Run, ShardResult
from simulation.engine.memory import keep_memory
from simulation.engine.ray_cluster import RayCluster
from simulation.engine.run_order import RunOrder
from simulation.engine.shard_runner import ShardRunner
from simulation.settings import SimulateConfig

log = logging.getLogger(__name__)

_AUTO = "auto"
_CHOICE = "ray"
_START_S = 180.0
_MAX_FAILED_STARTS = 3


@dataclass(eq=False)
class _Worker:
    """One actor.

    Attributes:
        work: reference to what it does now, its start at first; None while it is idle.
        index: of the run it works on.
    """

    actor: Any
    work: Any
    index: int | None = None


class RayPool:
    """Hands runs to whichever actor is free and yields their results in order.

    An actor that dies, with its node or alone, is replaced and its run done again once. Every
    node needs fedge, the task's code and its data at the same paths, as machines or containers
    of one image have them: only configuration, task object and weights travel.

    With ``engine.backend`` at ``auto`` the first run is trained alone, and the backend that its
    actor finds the fastest is everybody's: machines that measured for themselves could differ,
    and so would the last digits of what they train. The run folder remembers it.

    Args:
        config: of the simulation.
        task: what is learnt; it travels once.

    Attributes:
        num_workers: actors that the cluster has room for and a cohort has work for.
        runs_by_node: finished runs by Ray's id of the node.

    Raises:
        ConfigError: Ray is not installed, the cluster cannot be reached or has no room.
        TaskError: the task cannot be sent.
    """

    def __init__(self, config: SimulateConfig, task: Task) -> None:
        self.runs_by_node: Counter[str] = Counter()
        self._cluster = RayCluster(config.engine.ray)
        self._ray = self._cluster.ray
        self._choices = config.server.run_dir / "backends"
        self._backend = _known_backend(config, self._choices)
        self._workers: list[_Worker] = []
        self._num_requests = self._num_failed_starts = 0
        try:
            places = self._cluster.num_places(config.engine.ray_cpus, config.engine.ray_gpus)
            self.num_workers = min(places, _useful_actors(config))
            self._make_actor = self._prepare(config, task)
        except BaseException:
            self.close()
            raise

    def train(self, request: CohortRequest, runs: Sequence[Run]) -> Iterator[list[ShardResult]]:
        """Yield the shards of each run.

        Raises:
            TransportError: a run's actor died twice, or no actor starts.
        """
        return self._map("train", request, runs)

    def evaluate(
        self, request: WeightsRequest, runs: Sequence[Run]
    ) -> Iterator[list[Evaluation | Refusal]]:
        """Yield what the clients of each run measured."""
        return self._map("evaluate", request, runs)

    def close(self) -> None:
        """End our actors, and the cluster if it was started for us."""
        if self.runs_by_node:
            log.info("runs by node of the Ray cluster: %s", dict(self.runs_by_node))
        for worker in list(self._workers):
            self._end(worker)
        self._cluster.close()

    def _prepare(self, config: SimulateConfig, task: Task) -> Any:
        """Return what makes an actor; the task is in the object store from here on."""
        engine = config.engine
        if engine.ray_gpus > 0:
            engine = replace(engine, device="cuda")
        config = replace(config, engine=engine)
        options = {
            "num_cpus": engine.ray_cpus,
            "num_gpus": engine.ray_gpus,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        packed = self._ray.put(_pack_task(self._ray.cloudpickle, task))
        actor = self._ray.remote(ShardActor).options(**options)
        folder = os.getcwd()
        log.info("up to %d Ray actors train", self.num_workers)
        return lambda: actor.remote(config, packed, folder)

    def _map(self, kind: str, request: Any, runs: Sequence[Run]) -> Iterator[Any]:
        self._num_requests += 1
        asked = self._ray.put(_packed((kind, request)))  # travels once a node, not a run
        order = RunOrder(len(runs), self.num_workers)
        try:
            while not order.finished:
                while len(self._workers) < self.num_workers:
                    self._start()
                self._hand_out(kind, asked, runs, order)
                for worker in self._ready():
                    self._receive(worker, runs, order)
                yield from order.results()
        finally:
            # Nobody waits any more for what these work on.
            for worker in [worker for worker in self._workers if worker.index is not None]:
                self._end(worker)

    def _start(self) -> None:
        actor = self._make_actor()
        self._workers.append(_Worker(actor, actor.start.remote()))

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with suppress(Exception):  # Ray says in several ways that an actor is dead already
            self._ray.kill(worker.actor)

    def _hand_out(self, kind: str, asked: Any, runs: Sequence[Run], order: RunOrder) -> None:
        for worker in [each for each in self._workers if each.work is None]:
            undecided = kind == "train" and self._backend == _AUTO
            if undecided and any(each.index is not None for each in self._workers):
                return
            index = order.take()
            if index is None:
                return
            worker.index = index
            worker.work = worker.actor.work.remote(
                self._num_requests, asked, _packed(runs[index]), self._backend
            )

    def _ready(self) -> list[_Worker]:
        """Wait for one answer at least.

        Raises:
            TransportError: not even an actor's start is answered.
        """
        busy = {worker.work: worker for worker in self._workers if worker.work is not None}
        while True:
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=_START_S)
            if ready:
                return [busy[work] for work in ready]
            if all(worker.index is None for worker in busy.values()):
                raise TransportError(
                    f"no Ray actor started within {_START_S:g} s; the cluster may be busy with "
                    'other work: look at "ray status", or lower engine.ray_cpus or '
                    "engine.ray_gpus"
                )

    def _receive(self, worker: _Worker, runs: Sequence[Run], order: RunOrder) -> None:
        errors = self._ray.exceptions
        index, work = worker.index, worker.work
        worker.index = worker.work = None
        try:
            answer = self._ray.get(work)
        except errors.RayTaskError as error:
            raise TransportError(f"a Ray actor failed:\n{error}") from error
        except errors.RayError as error:
            self._end(worker)
            if index is None:
                self._note_failed_start(error)
            else:
                order.lost(index, _lost(runs[index], error))
                log.warning("%s; another one does them again", _lost(runs[index], error))
            return
        if index is None:
            self._num_failed_starts = 0
            return
        node, backend, result = ForkingPickler.loads(answer)
        self.runs_by_node[node] += 1
        order.put(index, result)
        self._settle(backend)

    def _settle(self, backend: str) -> None:
        if self._backend == _AUTO and backend:
            self._backend = backend
            self._choices.mkdir(parents=True, exist_ok=True)
            write_choice(self._choices, _CHOICE, Choice(backend))
            log.info("every Ray actor trains with %s", backend)

    def _note_failed_start(self, error: Exception) -> None:
        self._num_failed_starts += 1
        text = f"a Ray actor did not start: {error}"
        if self._num_failed_starts >= _MAX_FAILED_STARTS:
            raise TransportError(
                f"{text}\nevery node of the cluster needs fedge, the task's code and the same "
                "version of Python"
            ) from error
        log.warning("%s", text)


class ShardActor:
    """Works in a process of the cluster.

    Args:
        config: of the simulation.
        packed: the task, pickled.
        folder: the driver's, for relative paths in the task.
    """

    def __init__(self, config: SimulateConfig, packed: bytes, folder: str) -> None:
        with suppress(OSError):  # another image may lack it, and the task may not need it
            os.chdir(folder)
        self._config = config
        self._packed = packed
        self._runner: ShardRunner | None = None
        self._backend = ""
        self._number = 0
        self._asked: tuple[str, Any] = ("", None)

    def start(self) -> None:
        """Answer as soon as the process is up."""
        import torch

        torch.set_num_threads(1)

    def work(self, number: int, asked: bytes, packed_run: bytes, backend: str) -> bytes:
        """Return node, backend in use (empty where unknown) and result of one run, pickled."""
        import ray

        if number != self._number:
            self._number, self._asked = number, ForkingPickler.loads(asked)
        kind, request = self._asked
        run = ForkingPickler.loads(packed_run)
        # Where a node's home cannot be written it measures here; the driver remembers the choice.
        with tempfile.TemporaryDirectory(prefix="fedge-") as folder:
            runner = self._runner_with(backend, Path(folder))
            if kind == "train":
                result: Any = runner.train(request, run)
                backend = runner.backend_name(request)
            else:
                result = runner.evaluate(request, run)
        node = ray.get_runtime_context().get_node_id()
        return _packed((node, backend, result))

    def _runner_with(self, backend: str, folder: Path) -> ShardRunner:
        if self._runner is None or backend != self._backend or backend == _AUTO:
            keep_memory()
            engine = replace(self._config.engine, backend=backend)
            server = replace(self._config.server, run_dir=folder)
            config = replace(self._config, engine=engine, server=server)
            self._runner = ShardRunner(config, ForkingPickler.loads(self._packed))
            self._backend = backend
        return self._runner


def _packed(value: Any) -> bytes:
    return bytes(ForkingPickler.dumps(value))


def _pack_task(cloudpickle: Any, task: Task) -> bytes:
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:  # the task is the user's: whatever it holds decides
        raise TaskError(
            f"task {task.name} cannot be sent to a Ray cluster, it cannot be pickled: {error}; "
            "load what cannot travel where it is first used"
        ) from error


def _known_backend(config: SimulateConfig, choices: Path) -> str:
    """Return what is configured, or else what this run trained with before it was cut off."""
    known = read_choice(choices, _CHOICE) if config.engine.backend == _AUTO else None
    return known.name if known else config.engine.backend


def _useful_actors(config: SimulateConfig) -> int:
    cohort = min(config.server.rounds.cohort_size or config.num_clients, config.num_clients)
    num_shards = -(-cohort // SHARD_SIZE)
    return max(1, min(config.engine.workers or num_shards, num_shards))


def _lost(run: Run, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (
        f"a Ray actor died while it worked on clients {run.clients[0]} to {run.clients[-1]} "
        f"({type(error).__name__}: {lines[0] if lines else ''}); if memory ran out, raise "
        "engine.ray_cpus, so that fewer share a node, or lower engine.memory_mib"
    )
