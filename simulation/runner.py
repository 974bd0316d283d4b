"""Run a federation in this process: the server's own code over `SimulationGrid`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.client_app import make_client_app
from fedge.privacy.noise import Draws
from fedge.rng import stream_seed
from fedge.task import Task, load_task
from server.federation import run_federation
from simulation.grid import SimulationGrid
from simulation.jsonl import read_jsonl
from simulation.population import Population
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
    population = Population(config, task)
    app = make_client_app(population.participant_for)
    grid = SimulationGrid(app, config.num_clients, on_push=population.overhear)
    seed = config.server.seed

    def draws(round: int) -> Draws:
        return Draws.seeded(stream_seed(seed, "central-noise", round=round))

    run_federation(grid, config.server, task=task, draws=draws)
    run_dir = config.server.run_dir
    return SimulationResult(run_dir, read_jsonl(run_dir / "metrics.jsonl"))
