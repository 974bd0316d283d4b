import math
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ConfigError, TaskError
from fedge.params import Vector
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from server.refinement_gate import RefinementGate
from tests.tiny_task import TinyTask


class FakeLosses:
    """Takes the first N weights for the losses."""

    def losses(self, weights: Vector, examples: Examples, /) -> npt.NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            return np.asarray(1 / weights[: len(examples)], np.float64)


def _gate(num_examples: int, tolerance: float = 0.0) -> RefinementGate:
    examples = Examples(np.zeros((num_examples, 1), np.float32), np.zeros(num_examples))
    return RefinementGate(FakeLosses(), examples, tolerance)


def _weights(*losses: float) -> Vector:
    return (1 / np.array(losses)).astype(np.float32)


def test_a_lower_mean_loss_is_accepted_with_both_means_and_the_paired_difference() -> None:
    decision = _gate(2).decide(_weights(1, 3), _weights(0.5, 2.5))
    assert decision.accepted
    assert decision.loss_aggregate == pytest.approx(2)
    assert decision.loss_refined == pytest.approx(1.5)
    assert "-0.5 ± 0 over 2 examples" in decision.reason


@pytest.mark.parametrize(("tolerance", "accepted"), [(0.0, False), (0.4, False), (0.6, True)])
def test_a_higher_mean_loss_is_accepted_only_within_the_tolerance(
    tolerance: float, accepted: bool
) -> None:
    assert _gate(2, tolerance).decide(_weights(1, 3), _weights(1, 4)).accepted is accepted


def test_equal_weights_are_accepted() -> None:
    weights = _weights(1, 2, 3)
    assert _gate(3).decide(weights, weights.copy()).accepted


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=20), st.floats(0, 1), st.randoms())
def test_the_decision_does_not_depend_on_the_order_of_examples(
    losses: list[float], tolerance: float, shuffler: Random
) -> None:
    pairs = list(zip(losses, reversed(losses), strict=True))
    pairs[0] = (pairs[0][0] + 2 * tolerance * len(pairs) + 1, pairs[0][1])
    shuffled = shuffler.sample(pairs, len(pairs))
    gate = _gate(len(pairs), tolerance)
    decisions = [
        gate.decide(_weights(*(a for a, _ in each)), _weights(*(b for _, b in each)))
        for each in (pairs, shuffled)
    ]
    assert decisions[0].accepted == decisions[1].accepted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refined_weights_that_are_not_finite_are_refused(bad: float) -> None:
    refined = _weights(1, 1)
    refined[1] = bad
    decision = _gate(2).decide(_weights(1, 1), refined)
    assert not decision.accepted
    assert "weights are not finite" in decision.reason


@pytest.mark.parametrize("which", ["a refined", "an aggregate"])
def test_a_gate_loss_that_is_not_finite_is_refused(which: str) -> None:
    good, infinite = _weights(1, 1), np.zeros(2, np.float32)
    pair = (good, infinite) if which == "a refined" else (infinite, good)
    decision = _gate(2).decide(*pair)
    assert not decision.accepted
    assert decision.reason == f"{which} gate loss is not finite"


def test_an_empty_gate_set_and_a_bad_tolerance_are_refused_at_the_start() -> None:
    with pytest.raises(TaskError, match="gate set is empty"):
        _gate(0)
    with pytest.raises(ConfigError, match=r"refine\.tolerance"):
        _gate(1, math.nan)


def test_a_real_model_that_was_trained_passes_and_a_spoilt_one_does_not() -> None:
    task = TinyTask()
    trainer = LocalTrainer(task)
    start = trainer.initial_weights(0)
    gate = RefinementGate(trainer, task.cloud_data().gate, 0.0)
    spoilt = (start + 5 * np.sign(start)).astype(np.float32)
    assert gate.decide(spoilt, start).accepted
    assert not gate.decide(start, spoilt).accepted
