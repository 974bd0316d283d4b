"""Search spaces: what is refused by name, and what a point does to a configuration."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.config import build, load
from fedge.errors import ConfigError
from server.checks import check_names
from server.settings import ServerConfig
from server.tuner.space import (
    REACH,
    Parameter,
    Values,
    apply_values,
    distance,
    narrowed,
    parse_space,
    spread,
    values_in,
)

RATE = {"train.learning_rate": {"low": 1e-3, "high": 10.0, "log": True}}


def configure(space: dict[str, Any], **sections: Any) -> ServerConfig:
    return build(ServerConfig, {"tuner": {"sampler": "tpe", "space": space}, **sections})


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"train.rate": [1.0]}, "tuner.space.train.rate: cannot be tuned; these can: train."),
        ({"refine": {"steps": [40]}}, "tuner.space.refine: cannot be tuned"),
        ({"rounds.deadline_s": [60.0]}, "tuner.space.rounds.deadline_s: cannot be tuned"),
        ({"train.learning_rate": 1.0}, "tuner.space.train.learning_rate: must be a list"),
        ({"train.learning_rate": {"low": 1.0}}, "tuner.space.train.learning_rate: must be a list"),
        ({"train.learning_rate": []}, "must list distinct choices"),
        ({"train.learning_rate": [1.0, 1.0]}, "must list distinct choices"),
        ({"train.learning_rate": {"low": 2.0, "high": 1.0}}, "needs low < high, got 2.0 and 1.0"),
        ({"train.learning_rate": {"low": 0.0, "high": 1.0, "log": True}}, "needs 0 < low < high"),
        ({"train.learning_rate": {"low": 0.0, "high": 1.0}}, "would set train.learning_rate: must"),
        ({"train.learning_rate": {"low": "a", "high": 1.0}}, "low and high must be numbers"),
        ({"train.learning_rate": {"low": 0.1, "high": 1.0, "log": 1}}, "log must be true or false"),
        ({"train.local_epochs": {"low": 1, "high": 4, "points": 1}}, "points must be a whole"),
        ({"train.local_epochs": [4, 2.5]}, "train.local_epochs: must be a whole number, got 2.5"),
        ({"train.local_epochs": [1, 2]}, "does not hold train.local_epochs = 4"),
        ({"aggregation.codec": {"low": 1, "high": 2}}, "is text and has no range"),
        ({"aggregation.codec": ["raw", "zip"]}, "would set aggregation.codec: no codec: 'zip'"),
        ({}, "tuner.space: names no key to tune"),
    ],
)
def test_a_bad_space_is_refused_by_the_name_of_its_key(
    space: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(space)
    assert str(caught.value).startswith("tuner.space")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"aggregation": {"max_staleness": 1}}, "aggregation.max_staleness"),
        ({"aggregation": {"aggregator": "fltrust"}}, "aggregation.aggregator"),
        ({"train": {"personal_layers": ["head.*"]}}, "tuner.virtual_rounds"),
    ],
)
def test_what_a_change_of_hyperparameters_would_confuse_is_refused(
    sections: dict[str, Any], key: str
) -> None:
    build(ServerConfig, sections)
    with pytest.raises(ConfigError, match=rf"^{key}: "):
        configure(RATE, **sections)


@pytest.mark.parametrize(
    ("tuner", "expected"),
    [
        ({"sampler": "best", "space": RATE}, "tuner.sampler: must be one of grid, random, tpe"),
        ({"sampler": "tpe", "pruner": "some", "space": RATE}, "tuner.pruner: must be one of"),
        (
            {"sampler": "tpe", "space": {"aggregation.server_optimizer": ["fedavg", "sgd"]}},
            "tuner.space.aggregation.server_optimizer: must be one of",
        ),
        (
            {"sampler": "tpe", "space": {"aggregation": {"server_optimizer": ["fedavg", "sgd"]}}},
            "tuner.space.aggregation.server_optimizer: must be one of",
        ),
    ],
)
def test_unknown_names_are_refused_before_anything_starts(
    tuner: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_names(build(ServerConfig, {"tuner": tuner}))


def test_a_key_may_be_written_dotted_or_nested_or_on_the_command_line() -> None:
    dotted = configure({"train.local_epochs": [1, 4]})
    nested = configure({"train": {"local_epochs": [1, 4]}})
    line = load(ServerConfig, None, ["tuner.space.train.local_epochs=[1,4]", "tuner.sampler=tpe"])
    spaces = [parse_space(each.tuner.space, each) for each in (dotted, nested, line)]
    assert spaces == [(Parameter("train.local_epochs", choices=(1, 4)),)] * 3


def test_a_point_changes_its_keys_and_nothing_else() -> None:
    config = configure(RATE)
    changed = apply_values(config, {"train.learning_rate": 0.5, "rounds.cohort_size": 7})
    assert changed.train.learning_rate == 0.5
    assert changed.rounds.cohort_size == 7
    assert apply_values(changed, {"train.learning_rate": 1.0, "rounds.cohort_size": 0}) == config
    assert values_in(changed, parse_space(RATE, config)) == {"train.learning_rate": 0.5}
    assert changed.train.digest != config.train.digest


def test_the_points_of_a_grid_are_geometric_in_a_logarithmic_range() -> None:
    rate = Parameter("train.learning_rate", low=0.01, high=100.0, log=True, points=5)
    np.testing.assert_allclose(np.array(rate.grid(), float), [0.01, 0.1, 1, 10, 100])
    assert Parameter("train.local_epochs", low=1, high=3, points=9, whole=True).grid() == (1, 2, 3)


@given(count=st.integers(1, 12), seed=st.integers(0, 99))
def test_spread_points_lie_one_in_each_part_of_every_range(count: int, seed: int) -> None:
    rate = Parameter("train.learning_rate", low=1e-3, high=10.0, log=True)
    share = Parameter("train.momentum", low=0.0, high=0.9)
    points = spread((rate, share), count, np.random.default_rng(seed))
    for parameter in (rate, share):
        parts = [parameter.distance(parameter.low, p[parameter.key]) * count for p in points]
        assert sorted(int(part - 1e-9) for part in parts) == list(range(count))
        assert all(parameter.holds(p[parameter.key]) for p in points)


@given(share=st.floats(0, 1), whole=st.booleans(), log=st.booleans())
def test_the_neighbourhood_of_a_point_holds_it_and_nothing_that_is_far(
    share: float, whole: bool, log: bool
) -> None:
    full = Parameter("train.batch_size", low=1, high=1000, log=log, whole=whole)
    value = full.at(share)
    (near,) = narrowed((full,), {full.key: value})
    assert near.holds(value)
    assert full.low <= near.low <= near.high <= full.high
    for end in (near.low, near.high):
        assert full.distance(value, end) <= REACH + (0.11 if whole else 1e-9)
    assert full.distance(near.low, near.high) > REACH / 2


def test_a_neighbourhood_has_every_choice() -> None:
    codec = Parameter("aggregation.codec", choices=("raw", "int8"))
    assert narrowed((codec,), {codec.key: "raw"}) == (codec,)


@given(left=st.floats(0.01, 1), right=st.floats(0.01, 1))
def test_distance_is_a_share_of_the_way_and_the_same_both_ways(left: float, right: float) -> None:
    space = (
        Parameter("train.learning_rate", low=0.01, high=1.0, log=True),
        Parameter("aggregation.codec", choices=("raw", "int8")),
    )
    a: Values = {"train.learning_rate": left, "aggregation.codec": "raw"}
    b: Values = {"train.learning_rate": right, "aggregation.codec": "raw"}
    assert distance(space, a, a) == 0
    assert distance(space, a, b) == pytest.approx(distance(space, b, a))
    assert 0 <= distance(space, a, {**b, "aggregation.codec": "int8"}) <= 1
