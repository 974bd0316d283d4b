from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.contracts import ClientUpdate
from fedge.config import build
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


def personal_config(tmp_path: Path, *patterns: str) -> ServerConfig:
    """Return a server that adds noise to every parameter of an aggregate."""
    return build(
        ServerConfig,
        {
            "run_dir": str(tmp_path),
            "train": {"personal_layers": list(patterns)},
            "rounds": {"cohort_size": 1},
            "aggregation": {"aggregator": "private-mean", "server_optimizer": "fedavgm"},
            "central_privacy": {"noise_multiplier": 1.0},
            "evaluate": {"every_rounds": 0},
        },
    )


def test_the_global_model_keeps_its_personal_layers_whatever_is_added_to_the_aggregate(
    tmp_path: Path,
) -> None:
    layout = Layout(("body", "head"), ((4,), (3,)))
    update = ModelUpdate(personal_config(tmp_path, "head"), layout)
    weights = np.arange(7, dtype=np.float32)
    state = Checkpoint("run", 1, layout, weights)
    for _ in range(2):
        with update.open_aggregate(1, state.memory, num_clients=1) as aggregate:
            aggregate.add(ClientUpdate(1, np.ones(7, np.float32), 1.0, 7**0.5))
            state = update.apply(state, aggregate)
    assert (state.weights[:4] != weights[:4]).all()
    assert state.weights[4:].tobytes() == weights[4:].tobytes()


@pytest.mark.parametrize("pattern", ["tail", "*"])
def test_personal_layers_that_do_not_fit_the_model_are_refused_before_the_first_round(
    tmp_path: Path, pattern: str
) -> None:
    with pytest.raises(ConfigError, match=r"^train\.personal_layers: .*w"):
        ModelUpdate(personal_config(tmp_path, pattern), LAYOUT)
