"""A search's generations, with a federation whose losses are scripted."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from fedge.config import build
from server.settings import ServerConfig
from server.tuner.proposals import Proposer
from server.tuner.searcher import Found, Searcher
from server.tuner.space import Values, parse_space
from server.tuner.study import StudyLog

RATE = "train.learning_rate"
SPACE = {RATE: {"low": 1e-3, "high": 10.0, "log": True}}
BEST = 0.3
CURRENT: Values = {RATE: 0.01}
STATE = cast("Any", SimpleNamespace(round=0, weights=0.0))


class Scripted:
    """A federation whose losses are the lower the nearer a rate is to the best."""

    passes = 0

    def open(self, state: Any, configs: list[ServerConfig]) -> list[Any]:
        return [SimpleNamespace(state=state, path=[], config=config) for config in configs]

    def advance(self, trials: list[Any], number: int) -> None:
        self.passes += 10 * len(trials)
        for trial in trials:
            miss = abs(math.log10(trial.config.train.learning_rate / BEST))
            trial.path.append(number * (miss - 4))

    def losses(self, weights: float) -> Any:
        return np.full(4, np.exp(weights / 10))


def searcher(run_dir: Path, **tuner: Any) -> Searcher:
    wanted = {"sampler": "tpe", "space": SPACE, "virtual_rounds": 4, "readout": "last", **tuner}
    tree = {"tuner": wanted, "train": {"learning_rate": 0.01}, "run_dir": str(run_dir)}
    config = build(ServerConfig, tree)
    space = parse_space(SPACE, config)
    return Searcher(
        config, Proposer(config, space, 1), cast("Any", Scripted()), StudyLog(run_dir, "r", space)
    )


def compare(made: Searcher, *, is_first: bool) -> Found:
    return made.compare(STATE, CURRENT, lambda _: 0.0, {}, is_first=is_first)


def rates(found: Found) -> list[float]:
    return [float(each.values[RATE]) for each in found.candidates]


def test_the_first_search_has_generations_and_later_ones_are_near_what_was_good(
    tmp_path: Path,
) -> None:
    found = compare(searcher(tmp_path, generations=5), is_first=True)
    assert found.candidates[0].values == CURRENT
    assert len(found.candidates) == 8 + 4 * 4
    misses = [abs(math.log10(rate / BEST)) for rate in rates(found)]
    assert np.median(misses[8:]) < np.median(misses[:8])
    assert max(rates(found)[:8]) / min(rates(found)[:8]) > 100


def test_a_later_search_is_small_and_stays_near_the_values_in_use(tmp_path: Path) -> None:
    found = compare(searcher(tmp_path), is_first=False)
    assert len(found.candidates) == 1 + 4
    assert all(abs(math.log10(rate / 0.01)) <= 0.6 + 1e-9 for rate in rates(found))
    # Two rounds of five, two of three: half of the four that were proposed are dropped.
    assert found.passes == 10 * (2 * 5 + 2 * 3)


def test_the_values_in_use_are_tried_once_and_to_the_end(tmp_path: Path) -> None:
    found = compare(searcher(tmp_path, generations=3), is_first=True)
    assert [each.proposed for each in found.candidates].count(False) == 1
    assert found.candidates[0].finished
    assert len(set(rates(found))) == len(found.candidates)


def test_what_real_rounds_say_is_asked_of_every_point(tmp_path: Path) -> None:
    made = searcher(tmp_path)
    found = made.compare(STATE, CURRENT, lambda point: float(point[RATE]), {}, is_first=False)
    assert [each.correction for each in found.candidates] == rates(found)


def test_nothing_but_the_values_in_use_may_be_compared(tmp_path: Path) -> None:
    found = compare(searcher(tmp_path, candidates=1), is_first=True)
    assert [each.finished for each in found.candidates] == [True]
