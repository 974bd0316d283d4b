"""Run a federation in this process: the server's own code over `SimulationGrid`."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context

from edge_client.client_app import make_client_app, split_client_data
from edge_client.ledger import MemoryLedger
from edge_client.participant import Participant
from edge_client.replies import MemoryReplyStore
from edge_client.worker import InProcessWorker
from fedge.privacy.noise import Draws
from fedge.rng import stream_seed
from fedge.task import Examples, Split, Task, load_task
from server.federation import run_federation
from simulation.grid import SimulationGrid
from simulation.jsonl import read_jsonl
from simulation.settings import SimulateConfig


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


def simulate(config: SimulateConfig, *, task: Task | None = None) -> SimulationResult:
    """Run every round of a configuration; resumes a run that was cut off."""
    section = config.server.task
    task = task or load_task(section.name, **section.options)
    app = make_client_app(_participants(config, task))
    grid = SimulationGrid(app, config.num_clients)
    run_federation(grid, config.server, task=task)
    run_dir = config.server.run_dir
    return SimulationResult(run_dir, read_jsonl(run_dir / "metrics.jsonl"))


def _participants(config: SimulateConfig, task: Task) -> Callable[[Context], Participant]:
    """Return a lookup that makes each client's participant once and keeps it."""
    known: dict[int, Participant] = {}

    def participant_for(context: Context) -> Participant:
        client = int(context.node_config["partition-id"])
        if client not in known:
            known[client] = Participant(
                _worker(config, task, client),
                MemoryLedger(),
                MemoryReplyStore(),
                config.privacy,
            )
        return known[client]

    return participant_for


def _worker(config: SimulateConfig, task: Task, client: int) -> InProcessWorker:
    splits: dict[Split, Examples] = {
        split: split_client_data(task, client, config.num_clients, split)
        for split in typing.get_args(Split)
    }
    numbers = itertools.count(1)

    def draws() -> Draws:
        seed = stream_seed(config.server.seed, "client", round=next(numbers), client=client)
        return Draws.seeded(seed)

    return InProcessWorker(task, splits.__getitem__, draws=draws)
