from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdagrad as FlowerFedAdagrad
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedYogi as FlowerFedYogi
from flwr.serverapp.strategy.fedopt import FedOpt
from hypothesis import assume, given
from hypothesis import strategies as st

from aggregation.contracts import OptimizerOptions
from aggregation.methods import OPTIMIZERS
from fedge.errors import AggregationError, ConfigError
from fedge.params import Vector
from tests.unit.aggregation.helpers import LAYOUT, vectors

NAMES = ["fedadagrad", "fedadam", "fedyogi"]
START = np.linspace(-1, 1, LAYOUT.size).astype(np.float32)
options = st.builds(
    OptimizerOptions,
    learning_rate=st.floats(0.01, 2.0),
    beta_1=st.floats(0.0, 0.99),
    beta_2=st.floats(0.0, 0.999),
    tau=st.floats(1e-4, 1.0),
)
deltas = st.lists(vectors, min_size=1, max_size=5)

SECOND: dict[str, Callable[[float, float, float], float]] = {
    "fedadagrad": lambda v, square, _: v + square,
    "fedadam": lambda v, square, beta: beta * v + (1 - beta) * square,
    "fedyogi": lambda v, square, beta: (
        v - (1 - beta) * square * (float(v > square) - float(v < square))
    ),
}


def one_coordinate(name: str, given: OptimizerOptions, start: float, steps: list[float]) -> float:
    """Algorithm 2 of the paper, one number at a time, in double precision."""
    beta_1 = 0.0 if name == "fedadagrad" else given.beta_1
    weight, first, second = start, 0.0, given.tau**2
    for delta in steps:
        # FedYogi's sign jumps here, so float32 may rightly take the other side.
        assume(name != "fedyogi" or not math.isclose(second, delta**2, rel_tol=1e-3))
        first = beta_1 * first + (1 - beta_1) * delta
        second = SECOND[name](second, delta**2, given.beta_2)
        weight += given.learning_rate * first / (math.sqrt(second) + given.tau)
    return weight


@pytest.mark.parametrize("name", NAMES)
@given(given=options, steps=deltas)
def test_each_coordinate_follows_the_papers_algorithm(
    name: str, given: OptimizerOptions, steps: list[Vector]
) -> None:
    optimizer = OPTIMIZERS[name](given)
    weights, state = START, optimizer.init(LAYOUT)
    for delta in steps:
        weights, state = optimizer.apply(weights, delta, state)
        assert weights.dtype == np.float32
        assert all(array.dtype == np.float32 for array in state.values())
    expected = [
        one_coordinate(name, given, float(START[i]), [float(step[i]) for step in steps])
        for i in range(LAYOUT.size)
    ]
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-4)


def flower(name: str, given: OptimizerOptions) -> FedOpt:
    """Return flwr's own strategy with the second moment at tau squared, as the paper has it."""
    common: dict[str, Any] = {"eta": given.learning_rate, "tau": given.tau}
    betas: dict[str, Any] = {"beta_1": given.beta_1, "beta_2": given.beta_2}
    if name == "fedadagrad":
        strategy: FedOpt = FlowerFedAdagrad(**common)
    else:
        kind = FlowerFedAdam if name == "fedadam" else FlowerFedYogi
        strategy = kind(**common, **betas)
    strategy.v_t = {"all": np.full(LAYOUT.size, given.tau**2, np.float32)}
    return strategy


def flowers_bias_correction(given: OptimizerOptions, round: int) -> float:
    """Return by what flwr's FedAdam scales the rate; the paper does not."""
    return math.sqrt(1 - given.beta_2 ** (round + 1)) / (1 - given.beta_1 ** (round + 1))


@pytest.mark.parametrize("name", NAMES)
@given(given=options, means=deltas)
def test_steps_equal_flowers_from_the_same_start_but_for_its_bias_correction(
    name: str, given: OptimizerOptions, means: list[Vector]
) -> None:
    strategy = flower(name, given)
    optimizer = OPTIMIZERS[name](given)
    weights, state = START, optimizer.init(LAYOUT)
    for round, mean in enumerate(means, 1):
        strategy.current_arrays = {"all": weights}
        if name == "fedadam":
            strategy.eta = given.learning_rate / flowers_bias_correction(given, round)
        record = ArrayRecord({"all": Array(mean)})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FlowerFedAvg, "aggregate_train", lambda *_, record=record: (record, None))
            arrays, _ = strategy.aggregate_train(round, [])
        assert arrays is not None
        weights, state = optimizer.apply(weights, mean - weights, state)
        np.testing.assert_allclose(weights, arrays["all"].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_that_changes_nothing_leaves_the_weights_and_makes_no_nan(name: str) -> None:
    optimizer = OPTIMIZERS[name](OptimizerOptions(tau=1e-30))
    zero = np.zeros(LAYOUT.size, np.float32)
    weights, state = START, optimizer.init(LAYOUT)
    for _ in range(3):
        weights, state = optimizer.apply(weights, zero, state)
    np.testing.assert_array_equal(weights, START)
    assert all(np.isfinite(array).all() for array in state.values())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_given_is_modified_so_that_a_round_can_be_taken_again(name: str) -> None:
    optimizer = OPTIMIZERS[name](OptimizerOptions())
    weights, delta = START.copy(), np.linspace(-2, 3, LAYOUT.size).astype(np.float32)
    before = optimizer.init(LAYOUT)
    for array in (weights, delta, *before.values()):
        array.flags.writeable = False
    first, after = optimizer.apply(weights, delta, before)
    again, after_again = optimizer.apply(weights, delta, before)
    assert first.tobytes() == again.tobytes()
    assert {key: value.tobytes() for key, value in after.items()} == {
        key: value.tobytes() for key, value in after_again.items()
    }
    assert not any(np.shares_memory(first, array) for array in (weights, *after.values()))


def test_fedadams_first_step_is_as_large_as_its_later_ones_without_a_bias_correction() -> None:
    optimizer = OPTIMIZERS["fedadam"](OptimizerOptions(learning_rate=0.5))
    weights, state = np.zeros(LAYOUT.size, np.float32), optimizer.init(LAYOUT)
    steps = []
    for _ in range(200):
        following, state = optimizer.apply(weights, np.ones(LAYOUT.size, np.float32), state)
        steps.append(float((following - weights)[0]))
        weights = following
    assert steps[0] == pytest.approx(0.5, rel=0.02)
    assert steps[-1] == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_hardly_depends_on_the_scale_of_the_updates(name: str) -> None:
    optimizer = OPTIMIZERS[name](OptimizerOptions(learning_rate=0.1, tau=1e-6))
    small, large = (
        optimizer.apply(START, np.full(LAYOUT.size, size, np.float32), optimizer.init(LAYOUT))[0]
        for size in (0.01, 100.0)
    )
    np.testing.assert_allclose(small, large, rtol=1e-3)
    assert np.all(small > START)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_whose_square_overflows_is_an_error_and_not_a_coordinate_that_stands_still(
    name: str,
) -> None:
    optimizer = OPTIMIZERS[name](OptimizerOptions())
    delta = np.full(LAYOUT.size, 1e25, np.float32)
    with np.errstate(over="ignore"), pytest.raises(AggregationError, match="max_norm"):
        optimizer.apply(START, delta, optimizer.init(LAYOUT))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("key", "value"), [("beta_1", 1.0), ("beta_1", -0.1), ("beta_2", 1.0), ("tau", 0.0)]
)
def test_an_option_out_of_range_is_refused_by_its_key(name: str, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: must be"):
        OPTIMIZERS[name](OptimizerOptions(**{key: value}))


@pytest.mark.parametrize("key", ["beta_1", "beta_2", "tau"])
def test_an_option_that_is_not_a_number_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        OPTIMIZERS["fedadam"](OptimizerOptions(**{key: math.nan}))
