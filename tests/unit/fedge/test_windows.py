import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import InvalidInput, TaskError
from fedge.tasks.digits import Digits
from fedge.tasks.sensor import Sensor
from fedge.windows import (
    Cut,
    Readings,
    Window,
    Windower,
    WindowSpec,
    cut_windows,
    window_spec_of,
)

SPEC = WindowSpec(size=3, hop=2, mean=(1.0,), scale=(2.0,))


def readings_of(
    values: list[float], first: int = 0, start_s: float = 0.0, step_s: float = 1.0
) -> Readings:
    number = len(values)
    return Readings(
        np.array(values, np.float64)[:, None],
        first + np.arange(number),
        start_s + step_s * np.arange(number, dtype=np.float64),
    )


def join(*parts: Readings) -> Readings:
    return Readings(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("values", "sequences", "times_s")
        )
    )


def part_of(readings: Readings, begin: int, end: int) -> Readings:
    here = slice(begin, end)
    return Readings(readings.values[here], readings.sequences[here], readings.times_s[here])


def same(windows: list[Window], cut: Cut, readings: Readings, spec: WindowSpec) -> bool:
    """Tell whether a stream's windows are those of a recording, to the last bit."""
    return (
        [w.inputs.tobytes() for w in windows] == [inputs.tobytes() for inputs in cut.inputs]
        and [w.first + spec.size - 1 for w in windows] == readings.sequences[cut.last].tolist()
        and [w.end_s for w in windows] == readings.times_s[cut.last].tolist()
        and [w.run for w in windows] == cut.runs.tolist()
    )


def by_hand(readings: Readings, spec: WindowSpec) -> list[bytes]:
    """Cut windows in the plainest way: look at every stretch of readings from every start."""
    stretches: list[list[int]] = []
    last: tuple[int, float] | None = None
    for position, (number, time_s) in enumerate(
        zip(readings.sequences, readings.times_s, strict=True)
    ):
        if last is not None and number <= last[0] and time_s <= last[1]:
            continue
        joins = last is not None and number == last[0] + 1 and last[1] <= time_s
        if last is None or not joins or time_s - last[1] > spec.max_gap_s:
            stretches.append([])
        stretches[-1].append(position)
        last = number, time_s
    found = []
    for stretch in stretches:
        for start in range(0, len(stretch) - spec.size + 1, spec.hop):
            window = spec.normalise(readings.values[stretch[start : start + spec.size]])
            if np.isfinite(window).all():
                found.append(window.tobytes())
    return found


specs = st.builds(
    lambda size, hop, constants, gap: WindowSpec(
        size, hop, tuple(c[0] for c in constants), tuple(c[1] for c in constants), gap
    ),
    st.integers(1, 6),
    st.integers(1, 8),
    st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 5)), min_size=2, max_size=2),
    st.sampled_from([math.inf, 1.0, 2.5]),
)


@st.composite
def recordings(draw: st.DrawFn) -> Readings:
    """Readings with gaps, repetitions, new beginnings and values that are not finite."""
    steps = st.tuples(
        st.sampled_from([1, 1, 1, 1, 1, 1, 2, 0, -1, -3]),
        st.sampled_from([1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 3.0, -1.0]),
    )
    values = st.one_of(
        st.floats(-1e3, 1e3, width=32), st.sampled_from([math.nan, math.inf, 3e38, 1e300])
    )
    moves = draw(st.lists(steps, max_size=40))
    rows = [[draw(values), draw(st.floats(-10, 10))] for _ in moves]
    return Readings(
        np.array(rows, np.float64).reshape(-1, 2),
        5 + np.cumsum([move[0] for move in moves], dtype=np.int64),
        np.cumsum([move[1] for move in moves], dtype=np.float64),
    )


@given(specs, recordings())
def test_a_stream_and_a_recording_give_the_same_windows_bit_for_bit(
    spec: WindowSpec, readings: Readings
) -> None:
    cut, windower = cut_windows(readings, spec), Windower(spec)
    assert same(windower.push(readings), cut, readings, spec)
    assert windower.counts == cut.counts
    assert [inputs.tobytes() for inputs in cut.inputs] == by_hand(readings, spec)


@given(specs, recordings(), st.data())
def test_a_stream_that_restarts_and_is_sent_some_readings_again_gives_each_window_once(
    spec: WindowSpec, readings: Readings, data: st.DataObject
) -> None:
    # In order: a source that begins to number anew cannot also send again what came before.
    ordered = Readings(
        readings.values,
        np.maximum.accumulate(readings.sequences) if len(readings) else readings.sequences,
        np.maximum.accumulate(readings.times_s) if len(readings) else readings.times_s,
    )
    windower, windows, position = Windower(spec), [], 0
    while position < len(ordered):
        end = data.draw(st.integers(position, len(ordered)))
        again = data.draw(st.integers(0, position))
        windows += windower.push(part_of(ordered, again, end))
        windower = Windower.from_bytes(spec, windower.to_bytes())
        position = max(end, position + (end == position))
        if position > end:
            windows += windower.push(part_of(ordered, end, position))
    assert same(windows, cut_windows(ordered, spec), ordered, spec)


def test_windows_begin_every_hop_and_are_normalised() -> None:
    cut = cut_windows(readings_of([1, 3, 5, 7, 9, 11]), SPEC)
    assert cut.inputs[..., 0].tolist() == [[0, 1, 2], [2, 3, 4]]
    assert cut.inputs.dtype == np.float32
    assert cut.last.tolist() == [2, 4]


def test_a_hop_longer_than_a_window_leaves_readings_out() -> None:
    spec = WindowSpec(size=2, hop=3, mean=(0.0,), scale=(1.0,))
    cut = cut_windows(readings_of([0, 1, 2, 3, 4, 5, 6, 7]), spec)
    assert cut.inputs[..., 0].tolist() == [[0, 1], [3, 4], [6, 7]]


def test_a_missing_reading_begins_a_new_window() -> None:
    readings = join(readings_of([0, 1, 2, 3]), readings_of([5, 6, 7], first=5, start_s=5))
    windower = Windower(SPEC)
    assert [w.first for w in windower.push(readings)] == [0, 5]
    assert windower.counts.gaps == 1


def test_a_pause_begins_a_new_window_where_the_spec_says_so() -> None:
    readings = join(readings_of([0, 1]), readings_of([2, 3, 4], first=2, start_s=60))
    assert [w.first for w in Windower(SPEC).push(readings)] == [0, 2]
    spec = WindowSpec(3, 2, (1.0,), (2.0,), max_gap_s=10)
    assert [w.first for w in Windower(spec).push(readings)] == [2]


def test_a_reading_that_is_not_finite_drops_its_windows_and_is_counted() -> None:
    windower = Windower(SPEC)
    windows = windower.push(readings_of([0, 1, 2, math.nan, 4, 5, 6, 7, 8]))
    assert [w.first for w in windows] == [0, 4, 6]
    assert (windower.counts.dropped, windower.counts.bad) == (1, 1)


def test_a_source_that_numbers_anew_is_told_from_one_that_repeats_itself() -> None:
    windower = Windower(SPEC)
    windower.push(readings_of([0, 1, 2, 3, 4]))
    assert windower.push(readings_of([3, 4], first=3, start_s=3)) == []
    assert windower.counts.repeated == 2
    [window] = windower.push(readings_of([0, 1, 2], start_s=100))
    assert (window.first, window.run, window.end_s) == (0, 1, 102.0)


def test_a_state_of_another_spec_is_not_gone_on_with() -> None:
    windower = Windower(SPEC)
    windower.push(readings_of([0, 1]))
    other = WindowSpec(size=3, hop=2, mean=(1.0,), scale=(3.0,))
    again = Windower.from_bytes(other, windower.to_bytes())
    assert again.push(readings_of([2], first=2, start_s=2)) == []
    assert again.counts.gaps == 0


def test_a_specification_survives_json() -> None:
    for spec in (SPEC, WindowSpec(2, 5, (0.1, -3.0), (1e-3, 7.0), max_gap_s=0.25)):
        assert WindowSpec.from_json(spec.to_json()) == spec
    assert SPEC.digest != WindowSpec(3, 1, (1.0,), (2.0,)).digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"hop": 0},
        {"mean": ()},
        {"scale": (1.0, 1.0)},
        {"scale": (0.0,)},
        {"mean": (math.nan,)},
        {"max_gap_s": 0.0},
        {"max_gap_s": math.nan},
    ],
)
def test_a_specification_that_makes_no_windows_is_refused(wrong: dict[str, object]) -> None:
    values: dict[str, object] = {"size": 2, "hop": 1, "mean": (0.0,), "scale": (1.0,), **wrong}
    with pytest.raises(TaskError, match="windows"):
        WindowSpec(**values)  # type: ignore[arg-type]


def test_readings_that_do_not_fit_together_are_refused() -> None:
    numbers, times = np.arange(2), np.zeros(2)
    with pytest.raises(InvalidInput, match=r"expected values \[N, C\]"):
        Readings(np.zeros((3, 1)), numbers, times)
    with pytest.raises(InvalidInput, match="a time is not finite"):
        Readings(np.zeros((2, 1)), numbers, np.array([0, math.nan]))
    for cut in (Windower(SPEC).push, lambda readings: cut_windows(readings, SPEC)):
        with pytest.raises(InvalidInput, match="expected 1 channels, got 2"):
            cut(Readings(np.zeros((2, 2)), numbers, times))


def test_a_task_says_how_it_cuts_readings_or_does_not() -> None:
    assert window_spec_of(Sensor()) == Sensor().window_spec()
    assert window_spec_of(Digits()) is None


def test_windows_that_are_not_the_tasks_inputs_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sensor, "window_spec", lambda _: SPEC)
    with pytest.raises(TaskError, match=r"takes inputs \[64, 3\], its windows are \[3, 1\]"):
        window_spec_of(Sensor())
    monkeypatch.setattr(Sensor, "window_spec", lambda _: (64, 32))
    with pytest.raises(TaskError, match="returned a tuple"):
        window_spec_of(Sensor())
