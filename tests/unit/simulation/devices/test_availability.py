"""When devices are there, by day and by night."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.devices.availability import Always, Diurnal
from simulation.devices.fleet import Fleet
from simulation.devices.hashing import ClientDraws
from simulation.devices.settings import AvailabilityConfig, DevicesConfig

HOUR, DAY = 3600.0, 86_400.0
CLIENTS = np.arange(20_000)
GREENWICH: dict[str, Any] = {"utc_offsets_h": (0.0,), "utc_offset_fractions": (1.0,)}


def diurnal(**options: Any) -> Diurnal:
    return Diurnal(AvailabilityConfig(**options), ClientDraws(1))


def share(model: Diurnal, at_s: float) -> float:
    return float((model.until(CLIENTS, at_s) > at_s).mean())


def test_always_is_for_ever() -> None:
    model = Always(AvailabilityConfig(), ClientDraws(1))
    assert model.until(CLIENTS, 5.0).min() == math.inf
    assert model.next_start(CLIENTS, 5.0).min() == math.inf


def test_at_night_the_configured_share_is_there() -> None:
    model = diurnal(**GREENWICH, night_share=0.7)
    for night in range(5):
        assert share(model, night * DAY + 2 * HOUR) == pytest.approx(0.7, abs=0.015)


def test_by_day_each_moment_has_the_share_that_the_window_covers() -> None:
    # Habits all alike but for the length of the night, 6 to 10 hours: gaps of 14 to 18.
    model = diurnal(**GREENWICH, spread_h=0, day_share=0.6, day_hours=4, night_start_h=22)
    gaps = np.linspace(14, 18, 1001)
    expected = 0.6 * (4 / (gaps + 4)).mean()
    for hour in (9, 13, 17, 21):
        assert share(model, hour * HOUR) == pytest.approx(expected, abs=0.015)


def test_one_country_is_there_four_times_as_much_at_its_peak() -> None:
    model = diurnal(**GREENWICH)
    shares = [share(model, hour * HOUR) for hour in range(24)]
    assert max(shares) / min(shares) == pytest.approx(4, rel=0.15)


def test_the_night_moves_with_the_time_zone_and_the_start() -> None:
    here = diurnal(utc_offsets_h=(8.0,), utc_offset_fractions=(1.0,))
    there = diurnal(**GREENWICH)
    late = diurnal(**GREENWICH, starts_at_h=8.0)
    np.testing.assert_allclose(
        here.until(CLIENTS, 50_000.0), there.until(CLIENTS, 50_000.0 + 8 * HOUR) - 8 * HOUR
    )
    np.testing.assert_allclose(here.until(CLIENTS, 50_000.0), late.until(CLIENTS, 50_000.0))


def test_nobody_comes_without_shares() -> None:
    model = diurnal(night_share=0.0, day_share=0.0)
    assert share(model, 2 * HOUR) == 0
    assert model.next_start(CLIENTS[:100], 0.0).min() == math.inf


@given(st.integers(0, 10**6), st.floats(0, 30 * DAY))
def test_a_window_is_stable_until_its_end(client: int, at_s: float) -> None:
    model, ids = diurnal(), np.array([client])
    end = model.until(ids, at_s)[0]
    assert end >= at_s
    if end == at_s:
        begin = model.next_start(ids, at_s)[0]
        assert begin > at_s
        for part in (0.01, 0.5, 0.99):
            now = at_s + part * (begin - at_s)
            assert model.until(ids, now)[0] == now
        assert model.until(ids, begin + 1e-3)[0] > begin + 1e-3
    else:
        for part in (0.1, 0.5, 0.9):
            now = at_s + part * (end - at_s)
            if at_s < now < end - 1e-3:
                assert model.until(ids, now)[0] == pytest.approx(end, abs=1e-6)
        assert end - at_s < 24 * HOUR


def test_a_window_never_lasts_longer_than_it_may() -> None:
    model = diurnal(night_hours=8, day_hours=4, **GREENWICH)
    left = model.until(CLIENTS, 3 * HOUR) - 3 * HOUR
    assert left.max() <= 10 * HOUR
    assert (left > 0).any()


def test_a_fleet_looks_the_same_in_pieces_and_in_any_order() -> None:
    fleet = Fleet(DevicesConfig(preset="phones"), 1, 100_000)
    ids = np.arange(100_000)
    whole = fleet.available(ids, 7 * HOUR)
    np.testing.assert_array_equal(fleet.available(ids[::-7], 7 * HOUR), whole[::-7])
    assert 0.1 < whole.mean() < 0.6


def test_the_next_window_of_all_is_the_first_of_any() -> None:
    fleet = Fleet(DevicesConfig(preset="phones"), 1, 50_000)
    ids = np.arange(0, 50_000, 500)
    absent = ids[~fleet.available(ids, 0.0)]
    begin = fleet.next_available_s(absent, 0.0)
    assert not fleet.available(absent, math.nextafter(begin, 0) - 1e-3).any()
    assert fleet.available(absent, begin + 1e-3).sum() == 1
    assert fleet.next_available_s(ids[:0], 0.0) == math.inf
