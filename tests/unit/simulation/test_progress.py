"""Progress: what is shown of a round, and that it never breaks a run."""

import io
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from simulation.progress import RoundListener, RoundProgress

MIB = 1 << 20


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def line(round: int, **figures: Any) -> dict[str, Any]:
    simulation = {"clients_per_s": 1234.0, "virtual_s": 90.0, "rss_bytes": 64 * MIB, **figures}
    return {"round": round, "accuracy_test": 0.5, "simulation": simulation}


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="simulation.progress"):
        yield caplog


def plain(clock: Clock, **options: Any) -> RoundProgress:
    console = Console(file=io.StringIO(), force_terminal=False)
    return RoundProgress(4, console=console, clock=clock, **options)


def test_elsewhere_than_on_a_terminal_each_round_is_one_line(
    logged: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with plain(clock).running() as progress:
        progress.on_round({"round": 0, "accuracy_test": None, "simulation": {"rss_bytes": MIB}})
        clock.now_s = 30.0
        progress.on_round(line(1))
    assert logged.messages == [
        "round 0/4  memory 1.0 MiB",
        "round 1/4  1,234 clients/s  0:01:30 left  virtual 1 min 30 s  memory 64.0 MiB  "
        "accuracy 0.5000",
    ]


def test_the_time_left_is_that_of_the_rounds_seen_by_this_process(
    logged: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with plain(clock, title="rate=1 seed 0").running() as progress:
        clock.now_s = 10.0
        progress.on_round(line(3))  # resumed after round 2
        clock.now_s = 16.0
        progress.on_round(line(4))
    assert logged.messages[0].startswith("rate=1 seed 0: round 3/4")
    assert "0:00:10 left" in logged.messages[0]
    assert "left" not in logged.messages[1]


def test_a_terminal_shows_a_bar_that_ends_full() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=160)
    with RoundProgress(2, title="[b]odd", console=console).running() as progress:
        for round in range(3):
            progress.on_round(line(round))
    shown = output.getvalue()
    assert "[b]odd" in shown
    assert "2/2" in shown
    assert "accuracy 0.5000" in shown


def test_log_lines_go_through_the_bar_and_then_where_they_went_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stderr, output = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = logging.StreamHandler(stderr)
    logging.getLogger().addHandler(handler)
    try:
        console = Console(file=output, force_terminal=True, width=80)
        with RoundProgress(2, console=console).running():
            logging.getLogger("x").error("during")
        logging.getLogger("x").error("after")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "during" in output.getvalue()
    assert "during" not in stderr.getvalue()
    assert "after" in stderr.getvalue()


@pytest.mark.parametrize("broken", [{}, {"round": "x"}, line(1, clients_per_s="fast")])
def test_what_cannot_be_shown_is_said_once_and_never_raised(
    broken: dict[str, Any], logged: pytest.LogCaptureFixture
) -> None:
    with plain(Clock()).running() as progress:
        progress.on_round(broken)
        progress.on_round(broken)
    assert len([each for each in logged.messages if "cannot be shown" in each]) == 1


def test_a_round_without_figures_of_a_simulation_is_shown_all_the_same(
    logged: pytest.LogCaptureFixture,
) -> None:
    listener: RoundListener = plain(Clock())
    listener.on_round({"round": 1, "simulation": None})
    assert logged.messages[0].startswith("round 1/4")
