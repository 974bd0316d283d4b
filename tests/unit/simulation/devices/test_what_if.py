"""Deadlines and over-selections side by side."""

import numpy as np

from simulation.devices.fleet import Fleet
from simulation.devices.schedule import Schedule
from simulation.devices.settings import AvailabilityConfig, DevicesConfig
from simulation.devices.what_if import what_if


def phones(num: int) -> Schedule:
    config = DevicesConfig(preset="phones", availability=AvailabilityConfig("always"))
    return Fleet(config, 1, num).schedule(
        np.arange(num),
        round=1,
        start_s=50.0,
        work=np.full(num, 400.0),
        bytes_down=4e5,
        bytes_up=4e5,
    )


def test_more_devices_answer_sooner_and_cost_more_bytes() -> None:
    rows = what_if(
        phones(200),
        start_s=50.0,
        target=100,
        deadlines_s=[60.0],
        over_selections=[1.0, 1.3, 1.6],
    )
    assert [row.num_asked for row in rows] == [100, 130, 160]
    assert rows[0].num_answered < 100
    assert rows[0].round_s == 60.0
    assert rows[1].num_answered == rows[2].num_answered == 100
    assert rows[2].round_s < rows[1].round_s < 60.0
    assert rows[0].bytes_down < rows[1].bytes_down < rows[2].bytes_down
    assert rows[2].num_unused > rows[1].num_unused > 0


def test_a_short_deadline_trades_updates_for_time() -> None:
    short, long = what_if(
        phones(100), start_s=50.0, target=100, deadlines_s=[2.0, 1e4], over_selections=[1.0]
    )
    assert short.round_s == 2.0
    assert short.num_answered < long.num_answered < 100
    assert short.num_unused > 0
    assert long.num_unused == 0


def test_rounding_asks_for_nobody_more() -> None:
    (row,) = what_if(phones(20), start_s=50.0, target=10, deadlines_s=[1e4], over_selections=[1.1])
    assert row.num_asked == 11
