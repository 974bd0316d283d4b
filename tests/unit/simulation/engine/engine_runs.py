"""Tiny tasks and whole runs of them, for the tests of the cohort engine.

The tasks stand here, and not in a test, so that worker processes can import them.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedge.config import build
from fedge.errors import TaskError
from fedge.params import Vector
from fedge.task import Examples
from server.checkpoint import CheckpointStore
from simulation.runner import SimulationResult, simulate
from simulation.settings import SimulateConfig
from tests.tiny_task import TinyTask

NUM_CLIENTS, SEED = 40, 11
PRIVATE = {"enabled": True, "epsilon": 8.0}
Tree = Mapping[str, Any]


@dataclass(frozen=True)
class MixedTask(TinyTask):
    """Clients of different sizes, so that weights and last batches matter."""

    name = "mixed"

    def client_data(self, client: int, num_clients: int) -> Examples:
        return self._draw("client", self.num_examples(client, num_clients), client)

    def num_examples(self, client: int, num_clients: int) -> int:
        return 10 + 4 * (client % 5)


@dataclass(frozen=True)
class TroubledTask(MixedTask):
    """Some clients cannot train: each in a way of its own."""

    name = "troubled"

    def client_data(self, client: int, num_clients: int) -> Examples:
        examples = super().client_data(client, num_clients)
        if client == 3:
            return replace(examples, inputs=np.full_like(examples.inputs, np.nan))
        if client == 5:
            return examples.subset(np.arange(0))
        if client == 7:
            raise ValueError("the file of client 7 is broken")
        if client == 9:
            raise TaskError("client 9 has no such data")
        return examples


@dataclass(frozen=True)
class DeadlyTask(MixedTask):
    """Its first client takes the worker down, as the system does where memory runs out.

    Attributes:
        driver: process that is spared.
        marker: written at the first death, and no other follows; none spares no worker.
    """

    name = "deadly"
    driver: int = 0
    marker: Path | None = None

    def client_data(self, client: int, num_clients: int) -> Examples:
        spared = self.marker is not None and self.marker.exists()
        if client == 0 and os.getpid() != self.driver and not spared:
            if self.marker is not None:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().client_data(client, num_clients)


_SERVER: Tree = {
    "rounds": {"num_rounds": 3},
    "train": {"learning_rate": 0.1, "local_epochs": 2, "batch_size": 4},
    "aggregation": {"aggregator": "weighted-mean"},
    "evaluate": {"every_rounds": 1},
    "central_privacy": {},
}
_OTHERS: Tree = {
    "engine": {"workers": 1, "backend": "stacked"},
    "privacy": {"enabled": False},
    "attack": {},
    "data": {},
    "devices": {},
}


def configure(run_dir: Path, *, num_clients: int = NUM_CLIENTS, **sections: Tree) -> SimulateConfig:
    """Return a run of three rounds whose clients all take part, in this process.

    Args:
        sections: what differs, by the section's name; those of the server by theirs.
    """
    unknown = sections.keys() - _SERVER.keys() - _OTHERS.keys()
    assert not unknown, unknown
    server: Tree
    others: Tree
    server, others = (
        {name: {**usual, **sections.get(name, {})} for name, usual in tree.items()}
        for tree in (_SERVER, _OTHERS)
    )
    server = {**server, "run_dir": str(run_dir), "seed": SEED}
    return build(SimulateConfig, {"num_clients": num_clients, "server": server, **others})


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    result: SimulationResult
    weights: Vector

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return self.result.rounds[1:]

    @property
    def digests(self) -> list[str]:
        return [entry["model_digest"] for entry in self.rounds]

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.result.run_dir / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def run(config: SimulateConfig, task: TinyTask | None = None) -> Run:
    """Simulate, and read the last weights."""
    result = simulate(config, task=task or MixedTask())
    stored = CheckpointStore(result.run_dir / "checkpoints").latest()
    assert stored is not None
    return Run(result, stored.weights)
