from dataclasses import replace

import numpy as np
import pytest

from edge_client.scaffold import control_after, correction_for
from fedge.errors import TaskError
from fedge.messages import WeightsRequest
from fedge.params import Layout, Vector
from fedge.settings import Hyperparameters

LAYOUT = Layout(("w",), ((3,),))
C = np.array([0.5, -1, 2], np.float32)
C_I = np.array([0.25, 0.25, -1], np.float32)
DELTA = np.array([-0.5, 1, 0.25], np.float32)


def ask(control: Vector | None, term: str = "scaffold", momentum: float = 0.0) -> WeightsRequest:
    hyper = Hyperparameters(learning_rate=0.125, client_term=term, momentum=momentum)
    return WeightsRequest("run", 1, 5, LAYOUT, np.zeros(3, np.float32), hyper, control=control)


@pytest.mark.parametrize(
    ("control", "own", "expected"),
    [
        (None, None, None),
        (C, None, [0.5, -1, 2]),
        (None, C_I, [-0.25, -0.25, 1]),
        (C, C_I, [0.25, -1.25, 3]),
    ],
)
def test_the_correction_is_the_servers_control_less_ones_own(
    control: Vector | None, own: Vector | None, expected: list[float] | None
) -> None:
    found = correction_for(ask(control), own)
    assert (None if found is None else found.tolist()) == expected


def test_without_scaffold_nothing_is_corrected_whatever_is_remembered() -> None:
    assert correction_for(ask(None, "none"), C_I) is None


def test_a_control_that_has_no_use_or_is_not_finite_is_refused() -> None:
    with pytest.raises(TaskError, match="client_term"):
        correction_for(ask(C, "fedprox"), None)
    with pytest.raises(TaskError, match="not finite"):
        correction_for(ask(np.array([0, np.nan, 0], np.float32)), None)


@pytest.mark.parametrize("own", [None, C_I])
@pytest.mark.parametrize("control", [None, C])
def test_the_next_control_is_option_ii_of_the_paper(
    own: Vector | None, control: Vector | None
) -> None:
    found = control_after(ask(control), own, DELTA, num_steps=4)
    assert found is not None
    assert found.dtype == np.float32
    before = np.zeros(3) if own is None else own
    everybody = np.zeros(3) if control is None else control
    assert found.tolist() == (before - everybody - DELTA / (4 * 0.125)).tolist()


def test_of_a_constant_gradient_the_control_is_that_gradient_with_momentum_too() -> None:
    gradient, velocity, delta = np.array([1, -2, 0.5]), np.zeros(3), np.zeros(3)
    for _ in range(6):
        velocity = 0.75 * velocity + gradient
        delta = delta - 0.125 * velocity
    decoded = delta.astype(np.float32)
    found = control_after(ask(None, momentum=0.75), None, decoded, num_steps=6)
    assert found is not None
    np.testing.assert_allclose(found, gradient, rtol=1e-6)


def test_a_control_that_overflows_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    request = ask(None)
    request = replace(request, hyper=replace(request.hyper, learning_rate=1e-30))
    assert control_after(request, C_I, np.full(3, 1e30, np.float32), num_steps=1) is None
    assert "begins anew" in caplog.text
