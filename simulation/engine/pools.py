"""Where shards are run: in this process, or in worker processes on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler

import torch

from fedge.messages import Evaluation, Refusal, WeightsRequest
from fedge.task import Task
from server.cohorts import CohortRequest
from simulation.engine.contracts import SHARD_SIZE, Run, ShardResult, WorkerPool
from simulation.engine.cores import num_cores
from simulation.engine.processes import ProcessPool
from simulation.engine.shard_runner import ShardRunner
from simulation.settings import SimulateConfig

log = logging.getLogger(__name__)


class InlinePool:
    """Runs shards in this process, on one thread like every worker: the results are the same.

    Args:
        config: of the simulation.
        task: what is learnt.
    """

    num_workers = 1

    def __init__(self, config: SimulateConfig, task: Task) -> None:
        self._runner = ShardRunner(config, task)

    def train(self, request: CohortRequest, runs: Sequence[Run]) -> Iterator[list[ShardResult]]:
        """Yield the shards of each run."""
        with _one_thread():
            for run in runs:
                yield self._runner.train(request, run)

    def evaluate(
        self, request: WeightsRequest, runs: Sequence[Run]
    ) -> Iterator[list[Evaluation | Refusal]]:
        """Yield what the clients of each run measured."""
        with _one_thread():
            for run in runs:
                yield self._runner.evaluate(request, run)

    def close(self) -> None:
        """There is nothing to end."""


def make_pool(config: SimulateConfig, task: Task) -> WorkerPool:
    """Return the configured pool: a Ray cluster's, worker processes, or this process.

    Raises:
        ConfigError: Ray is asked for and is not to be had.
    """
    if config.engine.ray:
        # Only now: Ray takes a second to import, and most simulations do without.
        from simulation.engine.ray_pool import RayPool

        return RayPool(config, task)
    num_workers = config.engine.workers or _useful_workers(config)
    if num_workers > 1 and _can_travel(task):
        return ProcessPool(config, task, num_workers)
    return InlinePool(config, task)


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _useful_workers(config: SimulateConfig) -> int:
    cohort = min(config.server.rounds.cohort_size or config.num_clients, config.num_clients)
    return min(num_cores(), -(-cohort // SHARD_SIZE))


def _can_travel(task: Task) -> bool:
    try:
        ForkingPickler.dumps(task)
    except Exception as error:  # the task is the user's: whatever it holds decides
        log.warning("task %s stays in one process, it cannot be pickled: %s", task.name, error)
        return False
    return True
