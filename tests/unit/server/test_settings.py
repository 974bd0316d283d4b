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
