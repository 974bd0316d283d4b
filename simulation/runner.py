"""Run a federation in this process: the server's own code over `SimulationGrid`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_client.client_app import make_client_app
from fedge.task import Task, load_task
from server.federation import run_federation
from simulation.clients import make_clients
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
    app = make_client_app(make_clients(config, task))
    grid = SimulationGrid(app, config.num_clients)
    run_federation(grid, config.server, task=task)
    run_dir = config.server.run_dir
    return SimulationResult(run_dir, read_jsonl(run_dir / "metrics.jsonl"))
