from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregation.local_steps import effective_steps, next_control
from fedge.params import Vector


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


momenta = st.floats(0.0, 0.99)


@given(st.integers(1, 60), momenta)
def test_constant_gradients_move_torchs_sgd_by_the_effective_steps(
    num_steps: int, momentum: float
) -> None:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=momentum)
    for _ in range(num_steps):
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert effective_steps(num_steps, momentum) == pytest.approx(-weight.item() / 0.5, rel=1e-9)


@given(st.floats(1.0, 1e6))
def test_without_momentum_steps_count_as_they_are(num_steps: float) -> None:
    assert effective_steps(num_steps, 0.0) == num_steps


@given(momenta)
def test_a_single_step_is_one_step_whatever_the_momentum(momentum: float) -> None:
    assert effective_steps(1.0, momentum) == pytest.approx(1.0)


def test_a_control_becomes_the_mean_gradient_that_the_update_took() -> None:
    own, server = vector(7, 8), vector(9, 4)
    gradients = np.stack([vector(1, 2), vector(3, 5)])
    delta: Vector = np.float32(-0.5) * (gradients + server - own).sum(axis=0)
    found = next_control(own, server, delta, num_steps=2, learning_rate=0.5)
    np.testing.assert_allclose(found, gradients.mean(axis=0))
    assert found.dtype == np.float32
    assert own.tolist() == [7, 8]
    assert delta.tolist() == [-0.5 * 8, -0.5 * -1]


def test_controls_that_nobody_has_yet_are_zero() -> None:
    delta, zero = vector(1, -2), np.zeros(2, np.float32)
    common = {"num_steps": 4.0, "learning_rate": 0.1, "momentum": 0.9}
    absent = next_control(None, None, delta, **common)
    assert absent.tobytes() == next_control(zero, zero, delta, **common).tobytes()
