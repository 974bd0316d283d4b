import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer

from fedge.cli import (
    CheckOption,
    ConfigOption,
    SetOption,
    interruptible,
    make_app,
    run_cli,
    stop_on_signals,
)
from fedge.errors import ConfigError

Action = Callable[[Path | None, list[str] | None, bool], object]


def _app(action: Action) -> typer.Typer:
    app = make_app()

    @app.command()
    def command(
        config: ConfigOption = None, overrides: SetOption = None, check: CheckOption = False
    ) -> None:
        """Do one thing."""
        action(config, overrides, check)

    return app


def _status(action: Action, args: Sequence[str] = ()) -> object:
    with pytest.raises(SystemExit) as ended:
        run_cli(_app(action), list(args))
    return ended.value.code


def _raise(error: BaseException) -> Action:
    def action(*_: object) -> NoReturn:
        raise error

    return action


def test_the_shared_options_reach_the_command(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []
    args = ["--config", str(tmp_path / "a.toml"), "--set", "a=1", "--set", "b=2", "--check"]
    assert _status(lambda *given: seen.append(given), args) == 0
    assert seen == [(tmp_path / "a.toml", ["a=1", "b=2"], True)]


def test_without_options_the_command_gets_its_defaults() -> None:
    seen: list[tuple[Any, ...]] = []
    assert _status(lambda *given: seen.append(given)) == 0
    config, overrides, check = seen[0]
    assert (config, list(overrides or ()), check) == (None, [], False)


def test_a_fedge_error_is_one_line_and_status_2(capfd: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("must be\n> 0", key="rounds.deadline_s")
    assert _status(_raise(error)) == 2
    assert capfd.readouterr() == ("", "error: rounds.deadline_s: must be; > 0\n")


def test_wrong_usage_is_status_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert _status(lambda *_: None, ["--nonsense"]) == 2
    assert "--nonsense" in capfd.readouterr().err


def test_ctrl_c_is_status_130_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert _status(_raise(KeyboardInterrupt())) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_the_commands_own_status_is_kept() -> None:
    assert _status(_raise(typer.Exit(7))) == 7


def test_a_bug_says_so_and_shows_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert _status(_raise(ZeroDivisionError("by zero"))) == 1
    assert "this is a bug in fedge" in caplog.text
    assert "ZeroDivisionError: by zero" in caplog.text


def test_help_names_the_shared_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert _status(lambda *_: None, ["--help"]) == 0
    out = capfd.readouterr().out
    assert all(option in out for option in ("--config", "--set", "--check"))


@pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")
def test_a_closed_output_pipe_is_quiet() -> None:
    code = (
        "from fedge.cli import *\napp = make_app()\n"
        "@app.command()\ndef command(): print('x' * 100)\nrun_cli(app)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(30) in (0, 1)
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_the_event_and_gives_the_handlers_back(
    number: signal.Signals,
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    stop = stop_on_signals()
    try:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.wait(5)
        assert {each: signal.getsignal(each) for each in before} == before
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_waiting_main_thread_is_woken_by_a_signal() -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    stop = stop_on_signals()
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        timer.start()
        started = time.monotonic()
        assert stop.wait(10)
        assert time.monotonic() - started < 5
    finally:
        timer.join()
        for each, handler in before.items():
            signal.signal(each, handler)


def test_logging_names_the_program_and_survives_an_unknown_level() -> None:
    code = (
        "import logging\nfrom fedge.cli import setup_logging\nsetup_logging('fedge-x')\n"
        "logging.getLogger('a').info('hello')"
    )
    environ = {**os.environ, "FEDGE_LOG_LEVEL": "loud"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert "fedge-x WARNING FEDGE_LOG_LEVEL=LOUD is not a level" in run.stderr
    assert run.stderr.endswith("fedge-x INFO hello\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_work_that_polls_nothing_is_interrupted_by_either_signal(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible(threading.Event()):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_work_does_not_begin_after_a_stop() -> None:
    stop = threading.Event()
    stop.set()
    begun = False
    with pytest.raises(KeyboardInterrupt), interruptible(stop):
        begun = True
    assert not begun


def run_and_hang_up(handler: str) -> subprocess.CompletedProcess[str]:
    """Run a program that SIGHUP reaches twice, and that says what came of its stop event."""
    code = (
        "import os, signal, time\nfrom fedge.cli import stop_on_signals\n"
        f"signal.signal(signal.SIGHUP, signal.{handler})\nstop = stop_on_signals()\n"
        "for _ in range(2): os.kill(os.getpid(), signal.SIGHUP)\n"
        "print(stop.wait(5 if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else 0))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_end_of_a_terminal_is_a_stop_and_not_a_kill() -> None:
    run = run_and_hang_up("SIG_DFL")
    assert (run.returncode, run.stdout) == (0, "True\n")


def test_nohup_is_respected() -> None:
    run = run_and_hang_up("SIG_IGN")
    assert (run.returncode, run.stdout) == (0, "False\n")
