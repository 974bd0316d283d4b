"""What devices are like, by preset and by override."""

import numpy as np
import pytest

from simulation.devices.classes import PRESETS
from simulation.devices.fleet import Fleet
from simulation.devices.profiles import device_classes
from simulation.devices.settings import DevicesConfig

CLIENTS = np.arange(50_000)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_usable_as_they_are(name: str) -> None:
    profile = Fleet(DevicesConfig(preset=name), 1, len(CLIENTS)).profile(CLIENTS)
    kinds = PRESETS[name].classes
    shares = np.bincount(profile.kind, minlength=len(kinds)) / len(CLIENTS)
    np.testing.assert_allclose(shares, [kind.fraction for kind in kinds], atol=0.01)
    for index, kind in enumerate(kinds):
        mine = profile.kind == index
        assert np.median(profile.speed[mine]) == pytest.approx(kind.examples_per_s, rel=0.05)
        assert np.median(profile.download[mine]) == pytest.approx(
            kind.download_mbps * 125_000, rel=0.05
        )


def test_the_tail_of_the_phones_is_chronically_slow() -> None:
    fleet = Fleet(DevicesConfig(preset="phones"), 1, len(CLIENTS))
    speed = fleet.profile(CLIENTS).speed
    low, high = np.percentile(speed, [1, 99])
    assert high / low > 20
    np.testing.assert_array_equal(fleet.profile(CLIENTS[::-1]).speed, speed[::-1])


def test_an_override_is_for_all_kinds_or_for_each() -> None:
    config = DevicesConfig(
        preset="phones",
        latency_s=(0.5,),
        memory_mib=(1, 2, 3),
        fractions=(0.1, 0.2, 0.7),
    )
    kinds = device_classes(config)
    assert [kind.latency_s for kind in kinds] == [0.5, 0.5, 0.5]
    assert [kind.memory_mib for kind in kinds] == [1, 2, 3]
    assert [kind.fraction for kind in kinds] == [0.1, 0.2, 0.7]
    assert [kind.name for kind in kinds] == ["low", "mid", "high"]
    profile = Fleet(config, 1, len(CLIENTS)).profile(CLIENTS)
    np.testing.assert_array_equal(profile.memory_bytes, (profile.kind + 1) * 2.0**20)


def test_speeds_are_log_normal() -> None:
    config = DevicesConfig(examples_per_s=(100.0,), speed_sigma=(0.7,))
    logs = np.log(Fleet(config, 1, len(CLIENTS)).profile(CLIENTS).speed / 100)
    assert abs(logs.mean()) < 0.015
    assert logs.std() == pytest.approx(0.7, rel=0.02)
