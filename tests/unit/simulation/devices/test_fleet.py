"""What comes of asking devices."""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.devices.fleet import Fleet
from simulation.devices.hashing import Floats, Ids
from simulation.devices.schedule import Outcome, Schedule
from simulation.devices.settings import AvailabilityConfig, DevicesConfig

PLAIN = DevicesConfig(
    examples_per_s=(100.0,), download_mbps=(8.0,), upload_mbps=(4.0,), latency_s=(0.5,)
)
"""100 examples, 1,000,000 bytes down or 500,000 up a second, and half a second each way."""


def ask(
    config: DevicesConfig,
    clients: Sequence[int] | Ids = range(200),
    *,
    round: int = 1,
    start_s: float = 1000.0,
    work: float = 400.0,
    bytes_down: float = 2e6,
    bytes_up: float = 1e6,
    memory_bytes: float = 0.0,
) -> Schedule:
    ids = np.asarray(clients, np.int64)
    return Fleet(config, 3, 100_000).schedule(
        ids,
        round=round,
        start_s=start_s,
        work=np.full(len(ids), work),
        bytes_down=bytes_down,
        bytes_up=bytes_up,
        memory_bytes=memory_bytes,
    )


def test_a_round_is_download_compute_upload_and_two_latencies() -> None:
    schedule = ask(PLAIN)
    np.testing.assert_allclose(schedule.finish_s, 1000 + 0.5 + 2 + 4 + 0.5 + 2)
    np.testing.assert_array_equal(schedule.stops_s, schedule.finish_s)
    assert set(schedule.bytes_down) == {2e6}
    assert set(schedule.bytes_up) == {1e6}


def test_a_dearer_model_takes_longer() -> None:
    config = DevicesConfig(examples_per_s=(100.0,), example_cost=10.0)
    np.testing.assert_allclose(ask(config).finish_s, 1000 + 40)


def test_by_default_no_time_passes_and_nothing_fails() -> None:
    schedule = ask(DevicesConfig(), memory_bytes=1e15)
    assert set(schedule.finish_s) == {1000.0}
    assert set(schedule.outcome) == {Outcome.OK}
    assert set(schedule.bytes_up) == {1e6}


def test_jitter_changes_from_round_to_round_around_the_usual() -> None:
    config = DevicesConfig(examples_per_s=(100.0,), jitter_sigma=(0.3,))
    times = np.array([ask(config, [5], round=r).finish_s[0] - 1000 for r in range(1, 400)])
    assert np.median(times) == pytest.approx(4, rel=0.05)
    assert np.log(times).std() == pytest.approx(0.3, rel=0.15)


def test_failures_come_at_their_rates_and_at_any_part_of_the_round() -> None:
    config = DevicesConfig(examples_per_s=(100.0,), dropout_rate=(0.2,), crash_rate=(0.1,))
    schedule = ask(config, np.arange(50_000))
    shares = np.bincount(schedule.outcome, minlength=5) / 50_000
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1, 0, 0], atol=0.01)
    for outcome in (Outcome.DROPOUT, Outcome.CRASH):
        parts = (schedule.stops_s[schedule.outcome == outcome] - 1000) / 4
        np.testing.assert_allclose(np.percentile(parts, [10, 50, 90]), [0.1, 0.5, 0.9], atol=0.03)
    again = ask(config, np.arange(50_000), round=2)
    both = ((schedule.outcome > 0) & (again.outcome > 0)).mean()
    assert both == pytest.approx(0.09, abs=0.01)


def test_bytes_stop_where_the_device_stops() -> None:
    config = DevicesConfig(
        examples_per_s=(100.0,),
        download_mbps=(8.0,),
        upload_mbps=(4.0,),
        latency_s=(0.5,),
        dropout_rate=(1.0,),
    )
    schedule = ask(config, np.arange(2000))
    elapsed = schedule.stops_s - 1000
    down = [min(max(t - 0.5, 0) * 1e6, 2e6) for t in elapsed]
    up = [min(max(t - 7.0, 0) * 5e5, 1e6) for t in elapsed]
    np.testing.assert_allclose(schedule.bytes_down, down, atol=1e-3)
    np.testing.assert_allclose(schedule.bytes_up, up, atol=1e-3)
    assert not np.isfinite(schedule.finish_s).any()


def test_a_model_that_does_not_fit_is_refused_at_once() -> None:
    config = DevicesConfig(preset="gateways", memory_mib=(1024, 512, 64), dropout_rate=(0.0,))
    fleet = Fleet(config, 3, 100_000)
    kinds = fleet.profile(np.arange(200)).kind
    schedule = ask(config, memory_bytes=100 * 2**20)
    np.testing.assert_array_equal(schedule.outcome == Outcome.MEMORY, kinds == 2)
    refused = kinds == 2
    assert refused.any()
    np.testing.assert_allclose(schedule.stops_s[refused], 1000.1)
    assert not schedule.bytes_down[refused].any()


def test_a_device_whose_window_ends_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("client,start_s,end_s\n0,0,1003\n1,0,1009.5\n2,1001,2000\n")
    windows = AvailabilityConfig("trace", trace=path)
    leaves = DevicesConfig(
        availability=windows,
        examples_per_s=(100.0,),
        download_mbps=(8.0,),
        upload_mbps=(4.0,),
        latency_s=(0.5,),
    )
    schedule = ask(leaves, [0, 1, 2])
    assert schedule.outcome.tolist() == [Outcome.UNAVAILABLE, Outcome.OK, Outcome.UNAVAILABLE]
    assert schedule.stops_s.tolist() == [1003, 1009, 1000]
    assert schedule.bytes_down.tolist() == [2e6, 2e6, 0]
    assert schedule.bytes_up.tolist() == [0, 1e6, 0]
    stays = AvailabilityConfig("trace", trace=path, leaves_mid_round=False)
    config = DevicesConfig(availability=stays, examples_per_s=(100.0,))
    assert not ask(config, [0, 1]).outcome.any()
    asleep = DevicesConfig(availability=windows)  # as fast as can be, but not there
    assert ask(asleep, [2]).outcome.tolist() == [Outcome.UNAVAILABLE]


@given(
    st.sampled_from(["none", "phones", "gateways", "lab"]),
    st.lists(st.integers(0, 99_999), min_size=1, max_size=40, unique=True),
    st.integers(1, 50),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.randoms(use_true_random=False),
)
def test_laws_of_every_schedule(
    preset: str, clients: list[int], round: int, start_s: float, work: float, random: Random
) -> None:
    config = DevicesConfig(preset=preset)
    options: dict[str, Any] = {
        "round": round,
        "start_s": start_s,
        "work": work,
        "memory_bytes": 3e8,
    }
    schedule = ask(config, clients, **options)
    ok = schedule.outcome == Outcome.OK
    np.testing.assert_array_equal(np.isfinite(schedule.finish_s), ok)
    np.testing.assert_array_equal(schedule.finish_s[ok], schedule.stops_s[ok])
    assert np.isfinite(schedule.stops_s).all()
    assert (schedule.stops_s >= start_s).all()
    for moved, whole in ((schedule.bytes_down, 2e6), (schedule.bytes_up, 1e6)):
        assert ((moved >= 0) & (moved <= whole)).all()
        assert (moved[ok] == whole).all()

    order = random.sample(range(len(clients)), random.randint(1, len(clients)))
    other = ask(config, [clients[i] for i in order], **options)
    for name in ("finish_s", "stops_s", "outcome", "bytes_down", "bytes_up", "clients"):
        np.testing.assert_array_equal(getattr(other, name), getattr(schedule, name)[order])


@given(st.floats(0.1, 100), st.floats(1, 50), st.floats(1, 1e4))
def test_more_bandwidth_or_speed_never_makes_a_round_longer(
    mbps: float, factor: float, speed: float
) -> None:
    def finish(download: float, upload: float, speed: float) -> Floats:
        config = DevicesConfig(
            preset="phones",
            availability=AvailabilityConfig("always"),
            download_mbps=(download,),
            upload_mbps=(upload,),
            examples_per_s=(speed,),
        )
        return ask(config).finish_s

    before = finish(mbps, mbps, speed)
    assert (finish(mbps * factor, mbps, speed) <= before).all()
    assert (finish(mbps, mbps * factor, speed) <= before).all()
    assert (finish(mbps, mbps, speed * factor) <= before).all()


def test_nobody_asked_is_an_empty_schedule() -> None:
    assert len(ask(DevicesConfig(preset="phones"), [])) == 0


@pytest.mark.parametrize("client", [-1, 100_000])
def test_clients_that_do_not_exist_are_an_error(client: int) -> None:
    with pytest.raises(IndexError, match="0 to 99999"):
        ask(PLAIN, [client])


def test_outcomes_have_the_names_of_the_figures() -> None:
    labels = [outcome.label for outcome in Outcome]
    assert labels == ["ok", "drop-out", "crash", "memory", "unavailable"]
    assert math.isinf(ask(DevicesConfig(dropout_rate=(1.0,))).finish_s[0])
