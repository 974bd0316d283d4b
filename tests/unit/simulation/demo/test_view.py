"""What a person sees, with a terminal and without."""

from io import StringIO

from rich.console import Console

from simulation.demo.load import LoadSnapshot
from simulation.demo.summary import Baselines, summarize
from simulation.demo.view import DemoView, max_epsilon, summary_table
from tests.unit.simulation.demo.figures import DEVICES, LOAD, ROUNDS


def make_console(*, terminal: bool) -> tuple[Console, StringIO]:
    written = StringIO()
    console = Console(file=written, force_terminal=terminal, width=160, color_system=None)
    return console, written


def test_without_a_terminal_each_round_is_one_line_and_none_comes_twice() -> None:
    console, written = make_console(terminal=False)
    view = DemoView(console, num_rounds=3, num_devices=2)
    with view.running():
        for seen in (0, 1, 1, 3, 4, 4):
            view.update(ROUNDS[:seen], LOAD, rate=24.6)
    lines = written.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["0/3", "1/3", "2/3", "3/3"]
    assert lines[3] == (
        "round 3/3  devices 2/2  accuracy 0.875  ε 7.00  refinement failed  "
        "25 predictions/s  p99 99.0 ms"
    )
    assert "devices 0/2  accuracy 0.125  ε 0.00  refinement off" in lines[0]


def test_a_stage_is_one_line_without_markup() -> None:
    console, written = make_console(terminal=False)
    DemoView(console, 3, 2).stage("Starting")
    assert written.getvalue() == "Starting\n"


def test_on_a_terminal_there_is_a_table_of_the_rounds_and_what_the_devices_answer() -> None:
    console, written = make_console(terminal=True)
    view = DemoView(console, num_rounds=3, num_devices=2)
    with view.running():
        view.update(ROUNDS, LoadSnapshot(LOAD.latencies_ms, {"UNAVAILABLE": 2}), rate=24.6)
    printed = written.getvalue()
    assert "round 3 of 3" in printed
    assert "100 predictions answered by the devices, 2 failed, 25/s" in printed
    row = next(line for line in printed.splitlines() if "rejected" in line)
    for cell in ("2/2", "0.625", "0.575", "5.00"):
        assert cell in row


def test_nothing_seen_yet_can_be_shown() -> None:
    for terminal in (False, True):
        console, written = make_console(terminal=terminal)
        view = DemoView(console, num_rounds=3, num_devices=2)
        with view.running():
            view.update([], LoadSnapshot((), {}), rate=0.0)
        assert ("round 0 of 3" in written.getvalue()) == terminal


def test_the_closing_table_has_every_figure() -> None:
    devices = [DEVICES[0], DEVICES[1]]
    summary = summarize(ROUNDS, devices, LOAD, Baselines(0.75, 0.8125), delta=1e-5)
    console, written = make_console(terminal=False)
    console.print(summary_table(summary))
    rows = {
        cells[1].strip(): cells[2].strip()
        for line in written.getvalue().splitlines()
        if len(cells := line.split("│")) == 4
    }
    assert list(rows.values()) == [
        "0.125",
        "0.750",
        "0.812",
        "0.875",
        "1 / 1",
        "7.00, 3.50  (δ = 1e-05)",
        "100 / 0",
        "50.50 / 99.01 ms",
        "2 of 2",
        "1.00 s",
    ]
    assert rows["accuracy, cloud alone (proxy data)"] == "0.812"


def test_the_largest_epsilon_is_that_of_the_worst_device() -> None:
    assert max_epsilon({"epsilon": {"1": 0.5, "2": 2.5}}) == 2.5
    assert max_epsilon({"epsilon": {}}) == 0.0
