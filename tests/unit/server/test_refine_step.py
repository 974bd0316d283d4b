from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedge.errors import RefineError
from fedge.params import Layout, Vector
from fedge.task import CloudData, Examples
from server.device_voice import DeviceVoice
from server.refine_step import Refined, RefineStep
from server.refinement_gate import RefinementGate
from server.refinement_modes import MODES
from server.settings import EvaluateConfig, RefineConfig
from server.trainer.spec import Refinement

LAYOUT = Layout(("w",), ((2,),))
AGGREGATE = np.zeros(2, np.float32)
BETTER = np.ones(2, np.float32)
SHARE = Examples(np.zeros((5, 1)), np.zeros(5))
CLOUD = CloudData(SHARE, SHARE, SHARE)
LAST_ROUND = 9


class ScriptedRefiner:
    def __init__(self, result: Vector | RefineError = BETTER) -> None:
        self.result = result
        self.calls: list[tuple[int, float]] = []
        self.started_from: list[Vector] = []

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        self.calls.append((round, deadline_s))
        self.started_from.append(weights)
        if isinstance(self.result, RefineError):
            raise self.result
        return Refinement(self.result, 3, 0.5, 2.0, 1.0)

    def close(self) -> None:
        """Hold nothing."""


class DistanceFromOne:
    def losses(self, weights: Vector, examples: Examples, /) -> np.ndarray:
        return np.full(len(examples), float(np.abs(weights - 1).sum()))


def step(
    refiner: ScriptedRefiner, *, mode: str = "sequential", every_rounds: int = 1, evaluate: int = 0
) -> RefineStep:
    config = RefineConfig(
        trainer="in-process", mode=mode, every_rounds=every_rounds, deadline_s=7.0
    )
    gate = RefinementGate(DistanceFromOne(), CLOUD, config, seed=0)
    voice = DeviceVoice(EvaluateConfig(every_rounds=evaluate), config.devices_margin)
    return RefineStep(MODES[mode](config, LAYOUT, refiner), gate, voice, LAST_ROUND)


def nobody(weights: Vector) -> dict[str, Any]:
    raise AssertionError("no device is to be asked")


def test_a_better_refinement_is_taken() -> None:
    refiner = ScriptedRefiner()
    refined = step(refiner).apply(4, AGGREGATE)
    assert refined.status == "accepted"
    np.testing.assert_array_equal(refined.weights, 1)
    assert refiner.calls == [(4, 7.0)]
    wanted = {"loss_aggregate": 2.0, "loss_refined": 0.0, "num_steps": 3, "staleness": 0}
    assert wanted.items() <= refined.detail.items()
    assert (refined.detail["blend"], refined.detail["bound"]) == (1.0, -2.0)


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_a_worse_refinement_is_rejected(value: float) -> None:
    refined = step(ScriptedRefiner(np.full(2, value, np.float32))).apply(1, AGGREGATE)
    assert refined.status == "rejected"
    assert refined.weights is AGGREGATE
    assert refined.detail["reason"]


FAILURES = [RefineError("the trainer at x:1 cannot be reached"), np.ones(3, np.float32)]


@pytest.mark.parametrize("result", FAILURES)
def test_a_failed_refinement_keeps_the_aggregate(result: Vector | RefineError) -> None:
    refined = step(ScriptedRefiner(result)).apply(1, AGGREGATE)
    assert refined.status == "failed"
    assert refined.weights is AGGREGATE
    assert refined.detail["reason"]


def test_refinement_comes_every_so_many_rounds() -> None:
    refiner = ScriptedRefiner()
    statuses = [step(refiner, every_rounds=3).apply(round, AGGREGATE).status for round in (1, 2, 3)]
    assert statuses == ["off", "off", "accepted"]


def test_overlapped_the_change_of_one_round_is_added_to_the_aggregate_of_the_next() -> None:
    refiner = ScriptedRefiner(np.full(2, 0.5, np.float32))
    overlapped = step(refiner, mode="overlapped")
    first = overlapped.apply(1, AGGREGATE)
    assert (first.status, refiner.calls) == ("off", [])
    start = np.full(2, 0.1, np.float32)
    overlapped.conclude(1, start, Refined(start), nobody, False)
    refined = overlapped.apply(2, np.full(2, 0.3, np.float32))
    assert refined.status == "accepted"
    np.testing.assert_allclose(refined.weights, 0.3 + (0.5 - 0.1), rtol=1e-6)
    assert refined.detail["staleness"] == 1
    assert refiner.calls == [(1, 7.0)]
    np.testing.assert_array_equal(refiner.started_from[0], start)


@pytest.mark.parametrize("result", FAILURES)
def test_an_overlapped_refinement_that_fails_leaves_the_aggregate_and_the_next_begins(
    result: Vector | RefineError,
) -> None:
    refiner = ScriptedRefiner(result)
    overlapped = step(refiner, mode="overlapped")
    overlapped.conclude(1, AGGREGATE, Refined(AGGREGATE), nobody, False)
    failed = overlapped.apply(2, AGGREGATE)
    assert (failed.status, failed.weights is AGGREGATE) == ("failed", True)
    refiner.result = BETTER
    overlapped.conclude(2, AGGREGATE, failed, nobody, False)
    assert overlapped.apply(3, AGGREGATE).status == "accepted"


def test_after_the_last_round_nothing_is_begun() -> None:
    overlapped = step(ScriptedRefiner(), mode="overlapped")
    overlapped.conclude(LAST_ROUND, AGGREGATE, Refined(AGGREGATE), nobody, False)
    assert overlapped.apply(LAST_ROUND + 1, AGGREGATE) == Refined(AGGREGATE)


def test_a_resumed_run_begins_the_lost_refinement_again() -> None:
    refiner = ScriptedRefiner()
    overlapped = step(refiner, mode="overlapped")
    overlapped.resume(3, AGGREGATE, {"refinement_detail": None})
    assert overlapped.apply(4, AGGREGATE).status == "accepted"
    assert refiner.calls == [(3, 7.0)]


def prefers(loss_of: Callable[[float], float]) -> Callable[[Vector], dict[str, Any]]:
    """Return devices whose loss depends on the first weight."""
    return lambda weights: {"loss": loss_of(float(weights[0])), "of": float(weights[0])}


def test_where_the_devices_lose_the_aggregate_stands_and_refinement_rests() -> None:
    refiner = ScriptedRefiner()
    asking = step(refiner, evaluate=3)
    worse, better = prefers(lambda w: 1 + w), prefers(lambda w: 1 - w)
    refined, evaluation = asking.conclude(1, AGGREGATE, asking.apply(1, AGGREGATE), worse, False)
    assert (refined.status, refined.weights is AGGREGATE) == ("rejected", True)
    assert refined.detail["devices"] == {"loss_aggregate": 1, "loss_refined": 2, "margin": 0}
    assert evaluation is not None
    assert evaluation["of"] == 0  # of what is committed
    resting = asking.apply(2, AGGREGATE)
    assert resting.status == "off"
    assert "rests" in resting.detail["reason"]
    resting, _ = asking.conclude(2, AGGREGATE, resting, nobody, False)
    resumed = step(refiner, evaluate=3)
    resumed.resume(2, AGGREGATE, {"refinement_detail": resting.detail})
    assert resumed.apply(2, AGGREGATE).status == "off"
    tried = resumed.apply(3, AGGREGATE)
    refined, evaluation = resumed.conclude(3, AGGREGATE, tried, better, True)
    assert refined.status == "accepted"
    assert evaluation is not None
    assert evaluation["of"] == 1
    assert resumed.apply(4, AGGREGATE).status == "accepted"


def test_devices_are_asked_once_about_what_the_gate_rejected() -> None:
    asking = step(ScriptedRefiner(np.full(2, -1.0, np.float32)), evaluate=3)
    asked: list[Vector] = []

    def ask(weights: Vector) -> dict[str, Any]:
        asked.append(weights)
        return {"loss": 1.0}

    for round in (2, 3):
        rejected = asking.apply(round, AGGREGATE)
        asking.conclude(round, AGGREGATE, rejected, ask, round == 3)
    assert len(asked) == 1
    assert asked[0] is AGGREGATE


def test_devices_that_do_not_answer_decide_nothing() -> None:
    asking = step(ScriptedRefiner(), evaluate=3)
    silent: dict[str, Any] = {"num_clients": 0}
    accepted = asking.apply(3, AGGREGATE)
    refined, _ = asking.conclude(3, AGGREGATE, accepted, lambda _: silent, True)
    assert refined.status == "accepted"
    assert "consent" not in refined.detail
