"""What tests of rounds over scripted clients share."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedge.config import build
from fedge.params import Vector
from fedge.training.local import LocalTrainer
from server.federation import RunSummary, run_federation
from server.settings import ServerConfig
from tests.unit.server.fake_grid import (
    FakeGrid,
    TinyTask,
    delta_of,
)


def configure(run_dir: Path, rounds: dict[str, Any] | None = None, **sections: Any) -> ServerConfig:
    tree = {
        "run_dir": str(run_dir),
        "seed": 3,
        "rounds": {"num_rounds": 1, "deadline_s": 5.0, "poll_interval_s": 0.005, **(rounds or {})},
        "evaluate": {"every_rounds": 0},
        **sections,
        "aggregation": {"aggregator": "weighted-mean", **sections.get("aggregation", {})},
    }
    return build(ServerConfig, tree)


def run(grid: FakeGrid, config: ServerConfig) -> RunSummary:
    return run_federation(grid, config, task=TinyTask())


def mean_of(nodes: list[int], round: int = 1) -> Vector:
    """Return the weighted mean in float64: what FedAvg's definition says."""
    weights = np.array([10.0 + node for node in nodes])
    deltas = np.stack([delta_of(node, round, 3) for node in nodes]).astype(np.float64)
    mean: Vector = (weights[:, None] * deltas).sum(axis=0) / weights.sum()
    return mean


def start_weights() -> Vector:
    return LocalTrainer(TinyTask()).initial_weights(3)


def assert_learnt_from(summary: RunSummary, nodes: list[int]) -> None:
    np.testing.assert_allclose(summary.weights - start_weights(), mean_of(nodes), rtol=1e-5)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
