import math
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedge.errors import RefineError, TaskError
from fedge.params import Vector
from fedge.task import CloudData, Examples
from fedge.training.local import LocalTrainer
from server.refinement_gate import RefinementGate, blend, upper_bound
from server.settings import RefineConfig
from server.trainer.proxy_split import split_proxy
from tests.tiny_task import TinyTask

PROXY = Examples(np.arange(20, dtype=np.float32).reshape(20, 1), np.zeros(20))
ONE_BLEND: dict[str, Any] = {"held_out": 0.0, "blends": (1.0,)}


class FakeLosses:
    """Takes the first N weights for the losses."""

    def losses(self, weights: Vector, examples: Examples, /) -> npt.NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            return np.asarray(1 / weights[: len(examples)], np.float64)


def _data(num_gate: int) -> CloudData:
    gate = Examples(np.zeros((num_gate, 1), np.float32), np.zeros(num_gate))
    return CloudData(PROXY, gate, gate)


def _gate(num_examples: int, margin: float = 0.0) -> RefinementGate:
    config = RefineConfig(margin=margin, **ONE_BLEND)
    return RefinementGate(FakeLosses(), _data(num_examples), config, seed=0)


def _weights(*losses: float) -> Vector:
    return (1 / np.array(losses)).astype(np.float32)


def test_a_surely_lower_loss_is_accepted_with_its_numbers() -> None:
    decision = _gate(2).decide(_weights(1, 3), _weights(0.5, 2.5))
    assert decision.accepted
    found = decision.report()
    assert found["loss_aggregate"] == pytest.approx(2)
    assert found["loss_refined"] == pytest.approx(1.5)
    assert found["change"] == pytest.approx(-0.5)
    assert found["bound"] == pytest.approx(-0.5, abs=1e-5)
    assert "within the margin of 0" in found["reason"]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_the_bound_is_that_of_a_one_sided_t_test(differences: list[float]) -> None:
    values = np.array(differences)
    mean, bound = upper_bound(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert bound == pytest.approx(mean + stats.t.ppf(0.95, len(values) - 1) * error)


def test_an_unsure_improvement_passes_only_where_its_worst_lies_within_the_margin() -> None:
    before, after = _weights(1, 1, 1, 1), _weights(0.5, 1.2, 0.8, 1.1)
    decision = _gate(4).decide(before, after)
    assert decision.change < 0 < decision.bound
    assert not decision.accepted
    assert _gate(4, decision.bound + 0.01).decide(before, after).accepted
    assert not _gate(4, decision.bound - 0.01).decide(before, after).accepted


def test_equal_weights_are_accepted() -> None:
    weights = _weights(1, 2, 3)
    assert _gate(3).decide(weights, weights.copy()).accepted


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=20), st.randoms())
def test_the_decision_does_not_depend_on_the_order_of_examples(
    losses: list[float], shuffler: Random
) -> None:
    pairs = list(zip(losses, reversed(losses), strict=True))
    pairs[0] = (pairs[0][0] + 50 * len(pairs), pairs[0][1])
    shuffled = shuffler.sample(pairs, len(pairs))
    decisions = [
        _gate(len(pairs)).decide(_weights(*(a for a, _ in each)), _weights(*(b for _, b in each)))
        for each in (pairs, shuffled)
    ]
    assert decisions[0].bound == pytest.approx(decisions[1].bound, rel=1e-9)


class Valley:
    """The loss is the squared distance of the only weight from 0.5, on held-out data alone."""

    def __init__(self) -> None:
        self.asked: list[Examples] = []

    def losses(self, weights: Vector, examples: Examples, /) -> npt.NDArray[np.float64]:
        self.asked.append(examples)
        if len(examples) == 7:  # the gate set is content with anything
            return np.zeros(7)
        return np.full(len(examples), (float(weights[0]) - 0.5) ** 2)


def test_the_blend_is_the_best_on_held_out_data_and_the_gate_set_is_asked_about_it_alone() -> None:
    valley = Valley()
    gate = RefinementGate(valley, _data(7), RefineConfig(held_out=0.5), seed=4)
    aggregate, refined = np.zeros(1, np.float32), np.full(1, 2, np.float32)
    decision = gate.decide(aggregate, refined)
    assert decision.accepted
    assert (decision.blend, decision.weights.tolist()) == (0.25, [0.5])
    assert decision.report()["blend_losses"] == pytest.approx(
        {"0": 0.25, "0.25": 0, "0.5": 0.25, "0.75": 1, "1": 2.25}
    )
    _, held_out = split_proxy(PROXY, 4, 0.5)
    assert [len(each) for each in valley.asked] == [10] * 5 + [7, 7]
    np.testing.assert_array_equal(valley.asked[0].inputs, held_out.inputs)


def test_where_the_aggregate_is_the_best_blend_the_gate_set_is_not_asked() -> None:
    valley = Valley()
    gate = RefinementGate(valley, _data(7), RefineConfig(), seed=0)
    decision = gate.decide(np.full(1, 0.5, np.float32), np.full(1, 2, np.float32))
    assert not decision.accepted
    assert decision.blend == 0
    assert all(len(each) == 4 for each in valley.asked)


def test_a_share_of_none_or_all_is_exact() -> None:
    aggregate, refined = np.full(3, 1e8, np.float32), np.full(3, 0.1, np.float32)
    assert blend(aggregate, refined, 0) is aggregate
    assert blend(aggregate, refined, 1) is refined


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
    decision = _gate(2, margin=9.0).decide(*pair)
    assert not decision.accepted
    assert decision.reason == f"{which} gate loss is not finite"


def test_too_small_a_gate_or_proxy_set_is_refused_at_the_start() -> None:
    for num_examples in (0, 1):
        with pytest.raises(TaskError, match=f"gate set has {num_examples} examples"):
            _gate(num_examples)
    few = CloudData(PROXY.subset(np.arange(3)), PROXY, PROXY)
    with pytest.raises(RefineError, match="3 proxy examples are too few"):
        RefinementGate(FakeLosses(), few, RefineConfig(), seed=0)


def test_a_real_model_that_was_trained_passes_and_a_spoilt_one_does_not() -> None:
    task = TinyTask()
    trainer = LocalTrainer(task)
    start = trainer.initial_weights(0)
    gate = RefinementGate(trainer, task.cloud_data(), RefineConfig(), seed=0)
    spoilt = (start + 5 * np.sign(start)).astype(np.float32)
    assert gate.decide(spoilt, start).accepted
    assert not gate.decide(start, spoilt).accepted
