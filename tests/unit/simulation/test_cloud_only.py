"""The cloud's half alone, against a loop and a forward pass written by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedge.config import build
from fedge.errors import ConfigError, RefineError
from fedge.params import Layout, Vector
from fedge.task import Examples
from fedge.training.local import LocalTrainer
from server.settings import ServerConfig
from server.trainer.alone import refining_alone
from server.trainer.spec import Refinement, RefineSpec
from simulation import cloud_only
from simulation.cloud_only import train_cloud_only
from tests.tiny_task import TinyTask

TASK = TinyTask()
DATA = TASK.cloud_data()
TRAINER = LocalTrainer(TASK)


def make_config(*, trainer: str = "in-process", every_rounds: int = 1) -> ServerConfig:
    return build(
        ServerConfig,
        {
            "seed": 3,
            "rounds": {"num_rounds": 4},
            "refine": {
                "trainer": trainer,
                "every_rounds": every_rounds,
                "steps": 5,
                "margin": 0.1,
                "held_out": 0.0,
                "blends": (1.0,),
            },
        },
    )


def logits(layout: Layout, weights: Vector, examples: Examples) -> np.ndarray:
    """Return the tiny MLP's outputs in float64, independently of torch."""
    first, first_bias, last, last_bias = (
        view.astype(np.float64) for view in layout.views(weights).values()
    )
    outputs: np.ndarray = np.tanh(examples.inputs @ first.T + first_bias) @ last.T + last_bias
    return outputs


def losses(layout: Layout, weights: Vector, examples: Examples) -> np.ndarray:
    outputs = logits(layout, weights, examples)
    chosen = outputs[np.arange(len(examples)), examples.targets]
    found: np.ndarray = np.log(np.exp(outputs).sum(axis=1)) - chosen
    return found


def accuracy(layout: Layout, weights: Vector, examples: Examples) -> float:
    return float(np.mean(logits(layout, weights, examples).argmax(axis=1) == examples.targets))


def refine_by_hand(config: ServerConfig, rounds: list[int]) -> float:
    layout, weights = TRAINER.layout, TRAINER.initial_weights(config.seed)
    for number in rounds:
        spec = RefineSpec(steps=5, seed=config.seed, round=number)
        refined = refining_alone(TASK).run(weights, spec).weights
        change = losses(layout, refined, DATA.gate) - losses(layout, weights, DATA.gate)
        error = change.std(ddof=1) / np.sqrt(len(change))
        if change.mean() + stats.t.ppf(0.95, len(change) - 1) * error <= config.refine.margin:
            weights = refined
    return accuracy(layout, weights, DATA.test)


@pytest.mark.parametrize(("every_rounds", "rounds"), [(1, [1, 2, 3, 4]), (2, [2, 4])])
def test_it_refines_as_often_as_a_run_would_and_keeps_what_the_gate_allows(
    every_rounds: int, rounds: list[int]
) -> None:
    config = make_config(every_rounds=every_rounds)
    expected = refine_by_hand(config, rounds)
    assert train_cloud_only(config, TASK) == pytest.approx(expected, abs=1e-9)
    assert expected > accuracy(TRAINER.layout, TRAINER.initial_weights(config.seed), DATA.test)


class StandInRefiner:
    """Does to the weights what a test says."""

    def __init__(self, change: Callable[[Vector], Vector]) -> None:
        self.change = change
        self.num_asked = 0
        self.is_closed = False

    def refine(self, weights: Vector, *, round: int, deadline_s: float) -> Refinement:
        self.num_asked += 1
        return Refinement(self.change(weights), 1, 0.0, 0.0, 0.0)

    def close(self) -> None:
        self.is_closed = True


def stand_in(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> StandInRefiner:
    refiner = StandInRefiner(change)
    monkeypatch.setattr(cloud_only, "make_refiner", lambda *_: refiner)
    return refiner


def fail(weights: Vector) -> Vector:
    raise RefineError("the trainer is down")


def spoil(weights: Vector) -> Vector:
    worse: Vector = (weights + 5 * np.sign(weights)).astype(np.float32)
    return worse


@pytest.mark.parametrize("change", [fail, spoil, lambda weights: weights * np.float32(np.nan)])
def test_what_fails_or_makes_the_gate_set_worse_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    refiner = stand_in(monkeypatch, change)
    config = make_config()
    initial = TRAINER.initial_weights(config.seed)
    assert train_cloud_only(config, TASK) == accuracy(TRAINER.layout, initial, DATA.test)
    assert refiner.num_asked == 4
    assert refiner.is_closed


def test_the_refiner_is_closed_whatever_ends_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(weights: Vector) -> Vector:
        raise KeyboardInterrupt

    refiner = stand_in(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_cloud_only(make_config(), TASK)
    assert refiner.is_closed


def test_without_refinement_there_is_nothing_to_measure() -> None:
    with pytest.raises(ConfigError, match=r"^refine\.trainer: "):
        train_cloud_only(make_config(trainer=""), TASK)
