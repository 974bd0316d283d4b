"""What a person may write in the section, and what is refused by its dotted key."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from fedge.config import build, to_tree
from fedge.errors import ConfigError
from simulation.devices.fleet import check_devices
from simulation.devices.settings import DevicesConfig


@dataclass(frozen=True)
class Outer:
    devices: DevicesConfig = field(default_factory=DevicesConfig)


def read(**devices: Any) -> DevicesConfig:
    config = build(Outer, {"devices": devices}).devices
    check_devices(config)
    return config


def test_the_defaults_survive_a_trip_through_toml() -> None:
    assert build(DevicesConfig, to_tree(DevicesConfig())) == DevicesConfig() == read()


@pytest.mark.parametrize(
    ("devices", "key", "text"),
    [
        ({"preset": "toasters"}, "devices.preset", "gateways, lab, none, phones"),
        (
            {"availability": {"name": "sometimes"}},
            "devices.availability.name",
            "always, diurnal, trace, preset",
        ),
        ({"latency_s": [-1.0]}, "devices.latency_s[0]", ">= 0"),
        ({"examples_per_s": [0.0]}, "devices.examples_per_s[0]", "> 0"),
        ({"speed_sigma": [float("nan")]}, "devices.speed_sigma[0]", "finite"),
        ({"dropout_rate": [1.5]}, "devices.dropout_rate[0]", "<= 1"),
        ({"dropout_rate": [0.7], "crash_rate": [0.4]}, "devices.crash_rate", "0.7 + 0.4"),
        ({"preset": "phones", "fractions": [0.5, 0.5, 0.5]}, "devices.fractions", "sums to 1.5"),
        ({"preset": "phones", "fractions": [0.5, 0.5]}, "devices.fractions", "low, mid, high"),
        ({"preset": "phones", "fractions": [1.0]}, "devices.fractions", "sum to 1"),
        ({"preset": "lab", "upload_mbps": [1.0, 2.0]}, "devices.upload_mbps", "desktop, got 2"),
        ({"example_cost": 0}, "devices.example_cost", "> 0"),
        (
            {"availability": {"night_share": 1.5}},
            "devices.availability.night_share",
            "<= 1",
        ),
        (
            {"availability": {"utc_offsets_h": [0.0]}},
            "devices.availability.utc_offset_fractions",
            "got 8",
        ),
        (
            {"availability": {"utc_offsets_h": [15.0], "utc_offset_fractions": [1.0]}},
            "devices.availability.utc_offsets_h[0]",
            "<= 14",
        ),
        (
            {"availability": {"utc_offsets_h": [0.0, 1.0], "utc_offset_fractions": [0.5, 0.4]}},
            "devices.availability.utc_offset_fractions",
            "sums to 0.9",
        ),
        ({"availability": {"name": "trace"}}, "devices.availability.trace", "is missing"),
    ],
)
def test_bad_values_are_refused_by_name(devices: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**devices)
    assert caught.value.key == key
    assert str(caught.value).count(key) == 1
    assert text in str(caught.value)
