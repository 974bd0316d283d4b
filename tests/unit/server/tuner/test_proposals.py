"""Which of a sampler's points are tried."""

from collections.abc import Sequence
from typing import Any

import pytest

from fedge.config import build
from server.settings import ServerConfig
from server.tuner.proposals import Proposer
from server.tuner.samplers import SAMPLERS
from server.tuner.space import Values, parse_space

RATE, EPOCHS = "train.learning_rate", "train.local_epochs"
SPACE = {RATE: {"low": 1e-4, "high": 1.0, "log": True}, EPOCHS: [1, 2]}


def propose(sampler: str = "random", count: int = 6, **options: Any) -> list[Values]:
    train = {"learning_rate": 0.01, "local_epochs": 1}
    tree = {"tuner": {"sampler": sampler, "space": SPACE}, "train": train}
    config = build(ServerConfig, tree)
    proposer = Proposer(config, parse_space(SPACE, config), 3)
    return proposer.points([], count, **{"round": 1, **options})


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_points_near_another_stay_in_its_neighbourhood(sampler: str) -> None:
    near: Values = {RATE: 0.01, EPOCHS: 1}
    rates = [float(point[RATE]) for point in propose(sampler, near=near)]
    assert len(rates) > 3
    assert all(0.0024 < rate < 0.041 for rate in rates)  # 15 % of four decades
    far = [float(point[RATE]) for point in propose(sampler)]
    assert not all(0.0024 < rate < 0.041 for rate in far)


def test_rounds_and_generations_have_points_of_their_own_and_the_same_again() -> None:
    assert propose() == propose()
    assert propose() != propose(generation=1)
    assert propose() != propose(round=2)


def test_what_is_fixed_stays_and_no_point_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn:
        def propose(self, *_: Any) -> Sequence[Values]:
            return [{RATE: 0.1, EPOCHS: 1}, {RATE: 0.1, EPOCHS: 2}, {RATE: 1e39, EPOCHS: 2}]

    monkeypatch.setitem(SAMPLERS._entries, "random", Stubborn)
    assert propose(fixed={EPOCHS: 2})[:1] == [{RATE: 0.1, EPOCHS: 2}]
    assert len([each for each in propose(fixed={EPOCHS: 2}) if each[RATE] == 0.1]) == 1
    assert propose(count=0) == []
