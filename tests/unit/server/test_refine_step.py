import numpy as np
import pytest

from fedge.errors import RefineError
from fedge.params import Layout, Vector
from fedge.task import Examples
from server.refine_step import RefineStep
from server.refinement_gate import RefinementGate
from server.settings import RefineConfig
from server.trainer.spec import Refinement

LAYOUT = Layout(("w",), ((2,),))
AGGREGATE = np.zeros(2, np.float32)
GATE = Examples(np.zeros((5, 1)), np.zeros(5))


class ScriptedRefiner:
    def __init__(self, result: Vector | RefineError) -> None:
        self.result = result
        self.calls: list[tuple[int, float]] = []

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        self.calls.append((round, deadline_s))
        if isinstance(self.result, RefineError):
            raise self.result
        return Refinement(self.result, 3, 0.5, 2.0, 1.0)

    def close(self) -> None:
        """Hold nothing."""


class DistanceFromOne:
    def losses(self, weights: Vector, examples: Examples, /) -> np.ndarray:
        return np.full(len(examples), float(np.abs(weights - 1).sum()))


def step(refiner: ScriptedRefiner, every_rounds: int = 1) -> RefineStep:
    config = RefineConfig(trainer="in-process", every_rounds=every_rounds, deadline_s=7.0)
    return RefineStep(config, LAYOUT, refiner, RefinementGate(DistanceFromOne(), GATE, 0.0))


def test_a_better_refinement_is_taken() -> None:
    refiner = ScriptedRefiner(np.ones(2, np.float32))
    refined = step(refiner).apply(4, AGGREGATE)
    assert refined.status == "accepted"
    np.testing.assert_array_equal(refined.weights, 1)
    assert refiner.calls == [(4, 7.0)]
    assert refined.detail["loss_aggregate"] == 2.0
    assert refined.detail["loss_refined"] == 0.0
    assert refined.detail["num_steps"] == 3


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_a_worse_refinement_is_rejected(value: float) -> None:
    refined = step(ScriptedRefiner(np.full(2, value, np.float32))).apply(1, AGGREGATE)
    assert refined.status == "rejected"
    assert refined.weights is AGGREGATE
    assert refined.detail["reason"]


@pytest.mark.parametrize(
    "result", [RefineError("the trainer at x:1 cannot be reached"), np.ones(3, np.float32)]
)
def test_a_failed_refinement_keeps_the_aggregate(result: Vector | RefineError) -> None:
    refined = step(ScriptedRefiner(result)).apply(1, AGGREGATE)
    assert refined.status == "failed"
    assert refined.weights is AGGREGATE
    assert refined.detail["reason"]


def test_refinement_comes_every_so_many_rounds() -> None:
    refiner = ScriptedRefiner(np.ones(2, np.float32))
    statuses = [step(refiner, every_rounds=3).apply(round, AGGREGATE).status for round in (1, 2, 3)]
    assert statuses == ["off", "off", "accepted"]
