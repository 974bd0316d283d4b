"""Availability as a file tells it."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ConfigError
from simulation.devices.fleet import Fleet
from simulation.devices.hashing import ClientDraws
from simulation.devices.settings import AvailabilityConfig, DevicesConfig
from simulation.devices.trace import Trace


def write(folder: Path, *rows: str, header: str = "client,start_s,end_s") -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def trace(path: Path | None, period_s: float = 0.0) -> Trace:
    return Trace(AvailabilityConfig("trace", trace=path, trace_period_s=period_s), ClientDraws(0))


def test_clients_are_there_in_their_intervals(tmp_path: Path) -> None:
    model = trace(write(tmp_path, "7,10,20", "3,0,5", "3,30,40"))  # 3 is the first, 7 the second
    for at_s, ends in [
        (0, [5, 0]),
        (5, [5, 5]),
        (10, [10, 20]),
        (19.5, [19.5, 20]),
        (20, [20, 20]),
    ]:
        np.testing.assert_array_equal(model.until(np.array([0, 1]), float(at_s)), ends)
    np.testing.assert_array_equal(model.next_start(np.array([0, 1]), 5.0), [30, 10])


def test_it_repeats_with_its_period_and_for_further_clients(tmp_path: Path) -> None:
    path = write(tmp_path, "0,10,20", "1,0,5")
    model = trace(path, period_s=100)
    ids = np.array([0, 1, 2, 3, 1000])
    np.testing.assert_array_equal(model.until(ids, 312.0), [320, 312, 320, 312, 320])
    np.testing.assert_array_equal(model.next_start(ids, 312.0), [410, 400, 410, 400, 410])
    np.testing.assert_array_equal(trace(path).until(ids, 32.0), [40, 32, 40, 32, 40])


def test_intervals_that_touch_are_one(tmp_path: Path) -> None:
    model = trace(write(tmp_path, "0,5,10", "0,0,5", "0,90,100", "1,0,50", "1,50,100"))
    np.testing.assert_array_equal(model.until(np.array([0]), 2.0), [10])
    np.testing.assert_array_equal(model.until(np.array([0]), 95.0), [110])  # into the next period
    np.testing.assert_array_equal(model.until(np.array([1]), 95.0), [math.inf])
    np.testing.assert_array_equal(model.next_start(np.array([1]), 95.0), [math.inf])


@given(st.data())
def test_it_agrees_with_a_plain_search(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows, spans = [], []
    for client in range(data.draw(st.integers(1, 4))):
        cuts = data.draw(st.lists(st.integers(0, 50), min_size=2, max_size=8, unique=True))
        cuts = sorted(cuts)[: len(cuts) // 2 * 2]
        spans.append(list(zip(cuts[::2], cuts[1::2], strict=True)))
        rows += [f"{client},{start},{end}" for start, end in spans[-1]]
    period = data.draw(st.integers(51, 60))
    model = trace(write(tmp_path_factory.mktemp("trace"), *rows), float(period))
    at = data.draw(st.floats(0, 200))
    ids = np.arange(9)
    unrolled = [
        [(start + k * period, end + k * period) for k in range(6) for start, end in spans[c]]
        for c in (ids % len(spans)).tolist()
    ]
    ends = [next((end for start, end in mine if start <= at < end), at) for mine in unrolled]
    nexts = [next(start for start, _ in mine if start > at) for mine in unrolled]
    np.testing.assert_allclose(model.until(ids, at), ends)
    np.testing.assert_allclose(model.next_start(ids, at), nexts)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["0,1"], "line 2: must be a whole number and two numbers, got '0,1,'"),
        (["0,0,1", "x,1,2"], "line 3: must be a whole number"),
        (["0,0,1", "-1,1,2"], "line 3: must have client >= 0"),
        (["0,2,1"], "line 2: must have client >= 0 and 0 <= start_s < end_s, got 0,2,1"),
        (["0,0,inf"], "line 2"),
        (["0,nan,1"], "line 2"),
        (["0,0,5", "1,0,5", "0,4,6"], "line 4: overlaps line 2: client 0"),
        ([], "has no intervals"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[str], text: str) -> None:
    path = write(tmp_path, *rows)
    with pytest.raises(ConfigError, match=r"devices\.availability\.trace") as caught:
        trace(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        trace(tmp_path / "missing.csv")
    with pytest.raises(ConfigError, match="missing: start_s, end_s"):
        trace(write(tmp_path, header="client,from,to"))
    (tmp_path / "trace.csv").write_bytes(b"client,start_s,end_s\n\xff\xfe,0,1\n")
    with pytest.raises(ConfigError, match="not a CSV file"):
        trace(tmp_path / "trace.csv")
    (tmp_path / "trace.csv").write_bytes(b"")
    with pytest.raises(ConfigError, match="must have the columns"):
        trace(tmp_path / "trace.csv")


def test_a_period_shorter_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trace_period_s: must be 0 or at least .* 20, got 10"):
        trace(write(tmp_path, "0,1,20"), period_s=10)


def test_a_fleet_follows_it(tmp_path: Path) -> None:
    path = write(tmp_path, "0,0,10", "1,20,30")
    config = DevicesConfig(availability=AvailabilityConfig("trace", trace=path))
    fleet = Fleet(config, 1, 4)
    assert fleet.available(np.arange(4), 25.0).tolist() == [False, True, False, True]
    assert fleet.next_available_s(np.array([0, 2]), 25.0) == 30.0
