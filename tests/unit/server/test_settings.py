"""Sections of the server's configuration that contradict each other."""

from typing import Any

import pytest

from fedge.config import build
from fedge.errors import ConfigError
from server.settings import ServerConfig

PERSONAL = {"personal_layers": ["head.*"]}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"refine": {"trainer": "in-process"}}, "refine.trainer"),
        ({"refine": {"trainer": "127.0.0.1:9094"}}, "refine.trainer"),
        ({"aggregation": {"aggregator": "fltrust"}}, "aggregation.aggregator"),
    ],
)
def test_what_trains_in_the_cloud_is_refused_with_personal_layers(
    sections: dict[str, Any], key: str
) -> None:
    build(ServerConfig, sections)
    with pytest.raises(ConfigError, match=rf"^{key}: .*train\.personal_layers.*untrained"):
        build(ServerConfig, {**sections, "train": PERSONAL})


@pytest.mark.parametrize("aggregator", ["bounded-mean", "median", "krum", "fednova", "scaffold"])
def test_personal_layers_go_with_every_aggregator_of_updates(aggregator: str) -> None:
    term = "scaffold" if aggregator == "scaffold" else "fedprox"
    train = {**PERSONAL, "client_term": term}
    config = build(ServerConfig, {"train": train, "aggregation": {"aggregator": aggregator}})
    assert config.train.personal_layers == ("head.*",)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"blends": []}, "blends"),
        ({"blends": [0.5, 1.5]}, "blends"),
        ({"blends": [0.0, 1.0]}, "blends"),
        ({"held_out": 0.0}, "held_out"),
        ({"budget_s": 30.0}, "budget_s"),
        ({"mode": "backwards"}, "mode"),
        ({"margin": -0.1}, "margin"),
    ],
)
def test_a_refinement_that_could_not_be_decided_or_ended_is_refused(
    values: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^refine\.{key}: must be "):
        build(ServerConfig, {"refine": values})


def test_a_single_blend_needs_nothing_held_out() -> None:
    config = build(ServerConfig, {"refine": {"blends": [1.0], "held_out": 0.0}})
    assert config.refine.blends == (1.0,)
