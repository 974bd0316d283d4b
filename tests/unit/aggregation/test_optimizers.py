from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedAvgM as FlowerFedAvgM
from hypothesis import given
from hypothesis import strategies as st

from aggregation.contracts import OptimizerOptions
from aggregation.methods import OPTIMIZERS
from fedge.errors import ConfigError
from fedge.params import Vector
from tests.unit.aggregation.helpers import LAYOUT, vectors

START = np.linspace(-1, 1, LAYOUT.size).astype(np.float32)
rates = st.floats(0.01, 2.0)


def record(vector: Vector) -> ArrayRecord:
    return ArrayRecord({"all": Array(vector)})


@given(vectors, vectors)
def test_fedavg_with_rate_one_takes_the_aggregate_itself(weights: Vector, delta: Vector) -> None:
    optimizer = OPTIMIZERS["fedavg"](OptimizerOptions(learning_rate=1.0))
    found, state = optimizer.apply(weights, delta, optimizer.init(LAYOUT))
    assert found.tobytes() == (weights + delta).tobytes()
    assert found.dtype == np.float32
    assert state == {}


@given(vectors, rates)
def test_fedavg_scales_the_step(delta: Vector, rate: float) -> None:
    optimizer = OPTIMIZERS["fedavg"](OptimizerOptions(learning_rate=rate))
    found, _ = optimizer.apply(START, delta, optimizer.init(LAYOUT))
    expected = START.astype(np.float64) + rate * delta.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(delta).max())


@given(st.lists(vectors, min_size=1, max_size=5), rates, st.floats(0.1, 0.99))
def test_fedavgm_does_flowers_arithmetic_bit_by_bit(
    means: list[Vector], rate: float, momentum: float
) -> None:
    flower = FlowerFedAvgM(server_learning_rate=rate, server_momentum=momentum)
    flower.current_arrays = record(START)
    optimizer = OPTIMIZERS["fedavgm"](OptimizerOptions(rate, momentum))
    weights, state = START, optimizer.init(LAYOUT)
    for mean in means:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                FlowerFedAvg, "aggregate_train", lambda *_, mean=mean: (record(mean), None)
            )
            arrays, _ = flower.aggregate_train(1, [])
        assert arrays is not None
        weights, state = optimizer.apply(weights, mean - weights, state)
        np.testing.assert_array_equal(weights, arrays["all"].numpy())
        assert weights.dtype == np.float32


def test_fedavgm_remembers_its_velocity_in_an_array() -> None:
    optimizer = OPTIMIZERS["fedavgm"](OptimizerOptions(learning_rate=1.0, momentum=0.5))
    delta = np.ones(LAYOUT.size, np.float32)
    state = optimizer.init(LAYOUT)
    weights = np.zeros(LAYOUT.size, np.float32)
    for expected in (1.0, 2.5, 4.25):
        weights, state = optimizer.apply(weights, delta, state)
        assert weights.tolist() == [expected] * LAYOUT.size
    assert state["velocity"].tolist() == [1.75] * LAYOUT.size


@pytest.mark.parametrize("name", ["fedavg", "fedavgm"])
def test_an_optimizer_makes_new_vectors(name: str) -> None:
    optimizer = OPTIMIZERS[name](OptimizerOptions())
    weights, delta = START.copy(), np.ones(LAYOUT.size, np.float32)
    state = optimizer.init(LAYOUT)
    found, _ = optimizer.apply(weights, delta, state)
    assert not np.shares_memory(found, weights)
    np.testing.assert_array_equal(weights, START)
    np.testing.assert_array_equal(delta, 1)
    assert all(np.all(array == 0) for array in state.values())


def test_an_unknown_optimizer_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"server optimizer .*'adam'.*fedavg, fedavgm"):
        OPTIMIZERS["adam"]
