from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.contracts import ClientUpdate
from fedge.errors import AggregationError, ConfigError
from fedge.params import Layout, Vector
from server.checkpoint import Checkpoint
from server.model_update import ModelUpdate
from server.settings import AggregationConfig, ServerConfig

LAYOUT = Layout(("w",), ((4,),))


def apply(tmp_path: Path, state: Checkpoint, delta: Vector, **config: Any) -> Checkpoint:
    update = ModelUpdate(configured(tmp_path, **config), LAYOUT)
    with update.open_aggregate(state.round, state.memory, num_clients=1) as aggregate:
        aggregate.add(ClientUpdate(1, delta, 2.0, float(np.linalg.norm(delta))))
        return update.apply(state, aggregate)


def configured(tmp_path: Path, **config: Any) -> ServerConfig:
    chosen = {"aggregator": "weighted-mean", **config}
    return ServerConfig(run_dir=tmp_path, aggregation=AggregationConfig(**chosen))


def zeros(**fields: Any) -> Checkpoint:
    return Checkpoint("run", 1, LAYOUT, np.zeros(4, np.float32), **fields)


def test_momentum_is_carried_from_round_to_round(tmp_path: Path) -> None:
    one = np.ones(4, np.float32)
    config = {"server_optimizer": "fedavgm", "momentum": 0.5}
    first = apply(tmp_path, zeros(), one, **config)
    second = apply(tmp_path, first, one, **config)
    np.testing.assert_allclose(second.weights, 1 + 1.5)
    np.testing.assert_allclose(second.optimizer_state["fedavgm"]["velocity"], 1.5)


def test_another_optimizer_after_a_resume_begins_anew(tmp_path: Path) -> None:
    one = np.ones(4, np.float32)
    first = apply(tmp_path, zeros(), one, server_optimizer="fedavg")
    second = apply(tmp_path, first, one, server_optimizer="fedavgm")
    assert list(second.optimizer_state) == ["fedavgm"]
    np.testing.assert_allclose(second.weights, 2.0)


def test_a_buffered_aggregator_leaves_nothing_behind(tmp_path: Path) -> None:
    after = apply(tmp_path, zeros(), np.full(4, 2, np.float32), aggregator="median")
    np.testing.assert_allclose(after.weights, 2.0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_weights_that_overflow_are_refused(tmp_path: Path) -> None:
    state = Checkpoint("run", 1, LAYOUT, np.full(4, 3e38, np.float32))
    with pytest.raises(AggregationError, match="not finite"):
        apply(tmp_path, state, np.full(4, 1e38, np.float32))


@pytest.mark.parametrize("key", ["aggregator", "server_optimizer"])
def test_an_unknown_method_is_refused_before_the_first_round(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        ModelUpdate(configured(tmp_path, **{key: "nonsense"}), LAYOUT)
