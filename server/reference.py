"""FLTrust's root of trust: the cloud's own update, from the parent that the devices have.

A trainer elsewhere computes it while the devices work. Without one it is computed in this process,
after the devices were asked, so they work meanwhile too.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from aggregation.cohort import needs_reference
from fedge.errors import RefineError
from fedge.params import Vector
from fedge.task import Task
from fedge.weights import layout_of
from server.refine import IN_PROCESS, GrpcRefiner, InProcessRefiner, Refiner
from server.settings import ServerConfig
from server.trainer.spec import RefineSpec

log = logging.getLogger(__name__)


class Reference:
    """Trains one reference a round.

    Args:
        refiner: how it is trained: like a client, on the proxy data.
        in_background: whether that goes on beside the round.
        deadline_s: of one training.
    """

    def __init__(self, refiner: Refiner, *, in_background: bool, deadline_s: float) -> None:
        self._refiner = refiner
        self._deadline_s = deadline_s
        self._pool = ThreadPoolExecutor(1, "reference") if in_background else None
        self._pending: Future[Vector] | None = None

    def start(self, round: int, parent: Vector) -> None:
        """Begin to train from a round's parent."""
        if self._pool is not None:
            self._pending = self._pool.submit(self._train, round, parent)
            return
        self._pending = Future()
        try:
            self._pending.set_result(self._train(round, parent))
        except RefineError as error:
            self._pending.set_exception(error)

    def take(self) -> Vector | None:
        """Return the open round's reference once it is there; None where it failed."""
        if self._pending is None:
            return None
        try:
            return self._pending.result()
        except RefineError as error:
            log.warning("the reference failed: %s", error)
            return None
        finally:
            self._pending = None

    def close(self) -> None:
        """Release what is held; does not wait for a training that nobody wants any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._refiner.close()

    def _train(self, round: int, parent: Vector) -> Vector:
        refined = self._refiner.refine(parent, round=round, deadline_s=self._deadline_s)
        delta: Vector = refined.weights - parent
        return delta


def make_reference(config: ServerConfig, task: Task) -> Reference | None:
    """Return what trains references where the aggregator needs one, else None.

    Raises:
        ConfigError: the trainer's token cannot be read.
    """
    if not needs_reference(config.aggregation.aggregator):
        return None
    spec = _client_spec(config, len(task.cloud_data().proxy))
    deadline_s = min(config.refine.deadline_s, config.rounds.deadline_s)
    if config.refine.trainer in ("", IN_PROCESS):
        refiner: Refiner = InProcessRefiner(task, spec)
        return Reference(refiner, in_background=False, deadline_s=deadline_s)
    layout = layout_of(task.build_model())
    # A name of its own: the trainer keeps results by run, round and parent.
    name = f"{config.run_name}/reference"
    refiner = GrpcRefiner(config.refine, name, layout, spec)
    return Reference(refiner, in_background=True, deadline_s=deadline_s)


def _client_spec(config: ServerConfig, num_proxy: int) -> RefineSpec:
    """Return how a client with the proxy data would train."""
    train = config.train
    batch_size = min(train.batch_size, max(1, num_proxy))
    steps = train.local_epochs * math.ceil(num_proxy / batch_size)
    return replace(
        RefineSpec(),
        learning_rate=train.learning_rate,
        momentum=train.momentum,
        batch_size=batch_size,
        steps=max(1, steps),
        seed=config.seed,
    )
