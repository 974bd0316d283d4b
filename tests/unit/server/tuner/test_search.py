"""Successive halving over candidates whose losses are scripted."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedge.training.evaluate import Values as Losses
from server.settings import ServerConfig
from server.tuner.federation import VirtualFederation
from server.tuner.pruners import PRUNERS
from server.tuner.readouts import last
from server.tuner.search import DIVERGED_GAIN, Candidate, best_of, ranks, search

PARENT = SimpleNamespace(weights=0.0)


class Scripted:
    """A federation whose loss after each virtual round is the parent's times a factor."""

    def __init__(self, factors: list[float | None]) -> None:
        self.factors = factors
        self.advanced: list[list[int]] = []

    def open(self, state: Any, configs: Sequence[Any]) -> list[Any]:
        return [
            SimpleNamespace(at=at, state=SimpleNamespace(weights=0.0), path=[])
            for at in range(len(configs))
        ]

    def advance(self, trials: Sequence[Any], number: int) -> None:
        self.advanced.append([trial.at for trial in trials])
        for trial in trials:
            factor = self.factors[trial.at]
            trial.state = None if factor is None else SimpleNamespace(weights=number * factor)
            trial.path.append(number * (factor or 0.0))

    def losses(self, weights: float) -> Losses:
        return np.full(4, np.exp(weights))


def run(factors: list[float | None], num_rounds: int = 8, pruner: str = "halving") -> Any:
    federation = Scripted(factors)
    candidates = [Candidate({}, at > 0) for at in range(len(factors))]
    try_all(federation, candidates, num_rounds, pruner)
    return federation, candidates


def try_all(
    federation: Scripted,
    candidates: list[Candidate],
    num_rounds: int,
    pruner: str,
    readout: Any = last,
) -> None:
    search(
        cast("VirtualFederation", federation),
        cast("Any", PARENT),
        candidates,
        [ServerConfig()] * len(candidates),
        num_rounds=num_rounds,
        pruner=PRUNERS[pruner],
        readout=readout,
    )


def test_the_worse_half_is_dropped_after_rounds_2_and_4_but_never_the_incumbent() -> None:
    federation, candidates = run([0.0, -0.3, -0.1, -0.4, -0.2, 0.1, None, 0.3])
    assert federation.advanced == [
        *[[0, 1, 2, 3, 4, 5, 6, 7]] * 2,
        *[[0, 1, 2, 3, 4]] * 2,
        *[[0, 1, 3]] * 4,
    ]
    assert [each.finished for each in candidates] == [True, True, False, True] + [False] * 4
    assert candidates[3].gains == pytest.approx({2: 0.8, 4: 1.6, 8: 3.2})
    assert candidates[6].gain == DIVERGED_GAIN
    assert best_of(candidates, candidates[0]) is candidates[3]


def test_candidates_are_scored_only_where_some_are_dropped_and_at_the_end() -> None:
    _, candidates = run([0.0, -0.2, -0.1], num_rounds=7)
    assert [sorted(each.gains) for each in candidates] == [[2, 7], [2, 7], [2]]


def test_a_later_generation_has_no_incumbent() -> None:
    federation = Scripted([0.0, -0.2, -0.1])
    candidates = [Candidate({}, True) for _ in range(3)]
    try_all(federation, candidates, 4, "halving")
    assert federation.advanced == [[0, 1, 2]] * 2 + [[1, 2]] * 2


def test_ranks_tell_the_share_of_the_others_that_are_worse_there() -> None:
    candidates = [
        Candidate({}, True, gains=gains)
        for gains in ({2: 0.1}, {2: 0.2, 4: 0.5}, {2: 0.2, 4: 0.4}, {2: -1.0})
    ]
    found = [ranks(each, candidates) for each in candidates]
    assert found == [{2: 1 / 3}, {2: 2.5 / 3, 4: 1.0}, {2: 2.5 / 3, 4: 0.0}, {2: 0.0}]
    assert ranks(candidates[0], candidates[:1]) == {2: 1.0}


def test_without_a_pruner_all_go_through_every_round() -> None:
    federation, candidates = run([0.0, 0.1, 0.2], num_rounds=3, pruner="none")
    assert federation.advanced == [[0, 1, 2]] * 3
    assert all(each.finished for each in candidates)


def test_a_candidate_is_scored_at_what_is_read_out() -> None:
    federation = Scripted([-0.1])
    candidates = [Candidate({}, False)]
    try_all(federation, candidates, 4, "none", readout=lambda path: path[0])
    assert candidates[0].gain == pytest.approx(0.1)


def with_losses(losses: list[float], gain: float) -> Candidate:
    return Candidate({}, True, gains={8: gain}, finished=True, losses=np.array(losses))


def test_a_candidate_must_be_better_by_more_than_two_standard_errors() -> None:
    incumbent = with_losses([1.0, 1.0, 1.0, 1.0], 0.0)
    # The same mean gain: once evenly spread over the examples, once due to one of them.
    even = with_losses([0.9, 0.9, 0.9, 0.9], 0.105)
    lucky = with_losses([0.72, 1.08, 0.8, 1.0], 0.105)
    assert best_of([incumbent, even], incumbent) is even
    assert best_of([incumbent, lucky], incumbent) is incumbent


def test_whatever_finishes_replaces_an_incumbent_that_diverges() -> None:
    incumbent = Candidate({}, False, gains={8: DIVERGED_GAIN}, finished=True)
    other = with_losses([2.0, 2.0], -0.1)
    assert best_of([incumbent, other], incumbent) is other
    assert best_of([incumbent], incumbent) is incumbent


def test_what_real_rounds_say_is_part_of_the_gain() -> None:
    candidates = [Candidate({}, False), Candidate({}, True, correction=0.5)]
    try_all(Scripted([-0.1, -0.1]), candidates, 1, "none")
    assert candidates[1].gain - candidates[0].gain == pytest.approx(0.5)
