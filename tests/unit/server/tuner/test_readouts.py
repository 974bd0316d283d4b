"""The weights that candidates are scored at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tuner.readouts import READOUTS, average


@pytest.mark.parametrize(("num_rounds", "later"), [(1, 1), (2, 1), (3, 2), (4, 2), (8, 4)])
def test_the_average_is_of_the_later_half(num_rounds: int, later: int) -> None:
    path = [np.full(3, value, np.float32) for value in range(num_rounds)]
    expected = np.mean([range(num_rounds)[-later:]])
    np.testing.assert_allclose(average(path), np.full(3, expected))


@given(num_rounds=st.integers(1, 9), name=st.sampled_from(list(READOUTS)))
def test_weights_that_stand_still_are_read_out_as_they_are(num_rounds: int, name: str) -> None:
    weights = np.array([0.1, -3e7, 1e-20], np.float32)
    found = READOUTS[name]([weights] * num_rounds)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weights)


def test_the_average_does_not_prefer_a_low_rate_for_its_little_noise() -> None:
    """SGD about a minimum of w²/2: high rates lose at the last weights, hardly at the average."""
    rng = np.random.default_rng(0)
    losses = {(rate, name): 0.0 for rate in (0.1, 1.0) for name in ("average", "last")}
    for _ in range(400):
        noise = rng.normal(size=(16, 50))
        for rate in (0.1, 1.0):
            weights, path = np.zeros(50), []
            for each in noise:
                weights = weights - rate * (weights + each)
                path.append(weights.astype(np.float32))
            for name in ("average", "last"):
                losses[rate, name] += float(np.mean(READOUTS[name](path) ** 2))
    advantage = {name: losses[1.0, name] / losses[0.1, name] for name in ("average", "last")}
    assert advantage["last"] > 10
    assert advantage["average"] < advantage["last"] / 2
