"""Run a federation on this machine: the server's own code over a simulated grid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.client_app import make_client_app
from fedge.durable import unsynced
from fedge.folder_lock import locked
from fedge.privacy.noise import Draws
from fedge.rng import stream_seed
from fedge.task import Task, load_task
from server.checkpoint import CheckpointStore
from server.federation import run_federation
from server.refine import Refiner
from simulation.cohort_grid import CohortSimulationGrid
from simulation.engine.absent import AbsentClients
from simulation.engine.cohort_engine import CohortEngine
from simulation.engine.pools import make_pool
from simulation.jsonl import read_jsonl
from simulation.partition.task import partitioned_task
from simulation.population import Population
from simulation.round_figures import RoundFigures
from simulation.run_folder import open_run
from simulation.settings import SimulateConfig
from simulation.state_store import StateStore
from simulation.virtual_time import VirtualTime

log = logging.getLogger(__name__)

_MIB = 1 << 20


@dataclass(frozen=True)
class SimulationResult:
    """What a simulated run came to.

    Attributes:
        rounds: one object a round, as in ``metrics.jsonl``; round 0 first.
        epsilon: by node, all rounds together; of the method, since the noise is seeded.
    """

    run_dir: Path
    rounds: list[dict[str, Any]]

    @property
    def accuracy_test(self) -> float:
        """Accuracy of the last committed weights on the test set."""
        return float(self.rounds[-1]["accuracy_test"])

    @property
    def epsilon(self) -> dict[str, float]:
        """Largest ε reported by each node."""
        return dict(self.rounds[-1]["epsilon"])


def simulate(
    config: SimulateConfig,
    *,
    task: Task | None = None,
    refiner: Refiner | None = None,
    on_round: Callable[[dict[str, Any]], None] | None = None,
) -> SimulationResult:
    """Run every round of a configuration; resumes a run that was cut off.

    Args:
        task: what is learnt; None loads the configured one.
        refiner: closed by the caller; None makes the configured one.
        on_round: told each round's line of metrics.

    Raises:
        FedgeError: it cannot run, or another simulation writes to the same folder.
    """
    run_dir = config.server.run_dir
    with locked(run_dir, "simulation", key="server.run_dir"):
        config = open_run(config)
        task = make_task(config, task)
        seed = config.server.seed

        def draws(round: int) -> Draws:
            return Draws.seeded(stream_seed(seed, "central-noise", round=round))

        # One line a client and round would be millions.
        logging.getLogger("edge_client.participant").setLevel(logging.WARNING)
        # What a power cut takes is done again from the last whole checkpoint.
        with _grid(config, task) as grid, unsynced():
            run_federation(
                grid, config.server, task=task, refiner=refiner, draws=draws, on_commit=on_round
            )
    return SimulationResult(run_dir, read_jsonl(run_dir / "metrics.jsonl"))


def make_task(config: SimulateConfig, task: Task | None = None) -> Task:
    """Return the task with its clients' data as configured.

    Raises:
        ConfigError, TaskError: task or data cannot be used.
    """
    section = config.server.task
    task = task or load_task(section.name, **section.options)
    return partitioned_task(config.data, task, config.num_clients, config.server.seed)


@contextmanager
def _grid(config: SimulateConfig, task: Task) -> Iterator[CohortSimulationGrid]:
    """Return a grid over the configured population, and give everything back afterwards."""
    run_dir = config.server.run_dir
    committed = CheckpointStore(run_dir / "checkpoints").latest()
    last_committed = 0 if committed is None else committed.round
    store = StateStore(
        run_dir / "clients.db",
        last_committed=last_committed,
        limit_bytes=config.engine.state_limit_mib * _MIB,
    )
    times, figures = VirtualTime(config, task, last_committed=last_committed), RoundFigures()
    with closing(store), closing(make_pool(config, task)) as pool:
        population = Population(config, task, store)
        absent = AbsentClients(config, task, store)
        engine = CohortEngine(config, pool, store, times, figures, absent)
        app = make_client_app(population.participant_for)
        yield CohortSimulationGrid(
            config,
            app,
            engine,
            times,
            figures,
            on_push=population.overhear,
            on_lost=population.charge,
        )
