"""One round of a whole cohort: who answers in time, trained in shards and merged in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import overload

import numpy as np

from aggregation.partial import PartialAggregate
from fedge.messages import Evaluation, Refusal, WeightsRequest
from server.cohort_round import largest_only
from server.cohorts import CohortReport, CohortRequest
from simulation.devices.hashing import Ids
from simulation.devices.timeline import LATE, Arrivals
from simulation.engine.absent import AbsentClients
from simulation.engine.contracts import SHARD_SIZE, Run, ShardResult, WorkerPool
from simulation.nodes import client_of, node_of
from simulation.round_figures import RoundFigures
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore
from simulation.virtual_time import VirtualTime

_RUNS_PER_WORKER = 2
_MAX_RUN_BYTES = 64 << 20
_GOOD_RUN_CLIENTS = 256
"""Small models train a third faster in calls of so many clients than in calls of 32."""
_MAX_RUN_CLIENTS = 1024


class CohortEngine:
    """Trains cohorts over a pool of workers.

    Args:
        config: of the simulation.
        pool: who trains.
        store: what clients carry from round to round.
        times: the devices and their time.
        figures: told what a round cost.
        absent: charges those who were asked and not trained.
    """

    def __init__(
        self,
        config: SimulateConfig,
        pool: WorkerPool,
        store: StateStore,
        times: VirtualTime,
        figures: RoundFigures,
        absent: AbsentClients,
    ) -> None:
        self._config = config
        self._pool = pool
        self._store = store
        self._times = times
        self._figures = figures
        self._absent = absent

    def train(
        self, request: CohortRequest, merge: Callable[[PartialAggregate], None]
    ) -> CohortReport:
        """Train until the target is reached or nobody else answers in time."""
        began, start_s = time.monotonic(), self._times.clock.monotonic()
        self._store.trim()
        clients = np.asarray([client_of(node) for node in request.nodes], np.int64)
        schedule = self._times.ask(clients, request.request)
        arrivals = Arrivals(
            schedule,
            start_s=start_s,
            deadline_s=request.deadline_s,
            loss_is_noticed=self._config.devices.loss_is_noticed,
        )
        tally = _Tally(request)
        asked = replace(request, nodes=())  # no worker needs to know who else is asked
        while tally.num_accepted < request.target:
            chosen = arrivals.next(request.target - tally.num_accepted)
            if not len(chosen):
                break
            for shard in self._shards(asked, chosen):
                merge(shard.partial)
                tally.add(shard)
                self._store.put(request.request.round, shard.states)
        filled = tally.num_accepted >= request.target
        self._times.clock.advance_to(arrivals.ends_at(arrivals.num_taken, filled=filled))
        self._times.note_busy(schedule)
        trained = arrivals.taken
        self._absent.charge(request, np.setdiff1d(clients, trained).tolist())
        outcomes = arrivals.outcomes(arrivals.num_taken)
        self._figures.note_training(
            num_clients=arrivals.num_taken,
            seconds=time.monotonic() - began,
            outcomes=outcomes,
            bytes_down=arrivals.bytes_down,
            bytes_up=arrivals.bytes_up,
        )
        return tally.report(num_late=outcomes[LATE])

    def evaluate(
        self, request: WeightsRequest, nodes: Sequence[int]
    ) -> Iterator[Evaluation | Refusal]:
        """Yield what each node measures; no virtual time passes."""
        clients = np.asarray([client_of(node) for node in nodes], np.int64)
        parts = self._parts(clients, request.layout.size_bytes)
        runs: Sequence[Run] = [Run(tuple(part.tolist())) for part in parts]
        if request.hyper.personal_layers:  # what a client measures with is in its state
            runs = _Runs(parts, self._store)
        for answers in self._pool.evaluate(request, runs):
            yield from answers

    def _shards(self, request: CohortRequest, clients: Ids) -> Iterator[ShardResult]:
        parts = self._parts(clients, request.request.layout.size_bytes)
        for shards in self._pool.train(request, _Runs(parts, self._store)):
            yield from shards

    def _parts(self, clients: Ids, update_bytes: int) -> list[Ids]:
        """Cut a cohort into runs of whole shards: long ones train faster, short ones balance."""
        even = -(-len(clients) // self._pool.num_workers)
        share = max(-(-even // _RUNS_PER_WORKER), min(even, _GOOD_RUN_CLIENTS))
        most = min(_MAX_RUN_CLIENTS, _MAX_RUN_BYTES // max(1, update_bytes))
        size = max(1, -(-min(share, most) // SHARD_SIZE)) * SHARD_SIZE
        return [clients[start : start + size] for start in range(0, len(clients), size)]


class _Runs(Sequence[Run]):
    """Runs whose clients' states are read when a run is handed out: a cohort's may be gigabytes."""

    def __init__(self, parts: Sequence[Ids], store: StateStore) -> None:
        self._parts = parts
        self._store = store

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Run]: ...

    def __getitem__(self, index: int | slice) -> Run | Sequence[Run]:
        if isinstance(index, slice):
            return _Runs(self._parts[index], self._store)
        chosen = tuple(self._parts[index].tolist())
        return Run(chosen, self._store.get(chosen))


class _Tally:
    """What has become of a cohort so far."""

    def __init__(self, request: CohortRequest) -> None:
        self.num_accepted = 0
        self._size = max(1, request.request.layout.size)
        self._refused: Counter[str] = Counter()
        self._epsilon: dict[int, float] = {}
        self._exhausted: set[int] = set()
        self._num_bits = self._distortion = 0.0
        self._failure: tuple[int, str] | None = None

    def add(self, shard: ShardResult) -> None:
        """Count one shard."""
        self.num_accepted += shard.partial.num_updates
        self._refused += shard.refused
        spent = {node_of(client): value for client, value in shard.epsilon.items()}
        self._epsilon.update(spent)
        self._exhausted.update(map(node_of, shard.exhausted))
        self._num_bits += shard.num_bits
        self._distortion += shard.distortion
        if self._failure is None and shard.failure is not None:
            client, text = shard.failure
            self._failure = (node_of(client), text)

    def report(self, *, num_late: int) -> CohortReport:
        """Return what the server is told."""
        cost: dict[str, float | None] = {"uplink_bits": None, "uplink_distortion": None}
        if self.num_accepted:
            cost = {
                "uplink_bits": self._num_bits / self.num_accepted / self._size,
                "uplink_distortion": self._distortion / self.num_accepted,
            }
        return CohortReport(
            num_accepted=self.num_accepted,
            num_late=num_late,
            refused=self._refused,
            epsilon=largest_only(self._epsilon),
            exhausted=self._exhausted,
            cost=cost,
            failure=self._failure,
        )
