"""What the console scripts share: their common options, how they log, stop and fail.

A script is four lines around one command::

    app = make_app()

    @app.command()
    def serve(config: ConfigOption = None, overrides: SetOption = None, check: CheckOption = False):
        setup_logging("fedge-server")
        settings = load(ServerConfig, config, overrides or ())
        ...

    def main() -> None:
        run_cli(app)
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from fedge.errors import FedgeError
from fedge.logs import setup_logging as setup_logging

EXIT_BUG = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
SIGNALS_WITHIN_S = 0.5

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file (TOML)."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key; may be repeated."),
]
CheckOption = Annotated[
    bool,
    typer.Option("--check", help="Only check the configuration, then exit."),
]

log = logging.getLogger(__name__)


def make_app() -> typer.Typer:
    """Return an empty typer application: plain help, no completion, tracebacks left to us."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def run_cli(app: typer.Typer, args: Sequence[str] | None = None) -> NoReturn:
    """Run a console script and end the process with the status a shell expects.

    0 or the command's own status; 2 for a `FedgeError` (one line on stderr) and for wrong usage;
    130 for Ctrl-C; 1, quietly, when nobody reads our output; 1 with a traceback for a bug.

    Args:
        app: the script's typer application.
        args: arguments; None takes those of the process.
    """
    try:
        typer.main.get_command(app)(args=args)
    except KeyboardInterrupt:
        status: object = EXIT_INTERRUPTED
    except FedgeError as error:
        typer.echo(f"error: {'; '.join(str(error).splitlines())}", err=True)
        status = EXIT_ERROR
    except SystemExit as error:
        status = error.code
    except Exception:  # the outermost boundary: what arrives here was mapped by nobody
        log.critical("this is a bug in fedge, please report it with the lines below", exc_info=True)
        status = EXIT_BUG
    else:
        status = 0
    _flush_output()
    sys.exit(status)  # type: ignore[arg-type]


def stop_on_signals() -> threading.Event:
    """Return an event that the first SIGINT or SIGTERM sets; call it in the main thread.

    The second signal acts as it would have without us, so a stop that hangs can be ended. SIGHUP,
    the end of a terminal, sets it too, unless ``nohup`` had it ignored; a second one does nothing.
    """
    stop = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hang_up(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        _thread.start_new_thread(stop.set, ())

    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hang_up)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for each, handler in previous.items():
            signal.signal(each, handler)
        # Not stop.set() itself: the interrupted main thread may hold the event's own lock.
        _thread.start_new_thread(stop.set, ())

    for number in previous:
        signal.signal(number, handle)
    return stop


def wait_for_stop(stop: threading.Event) -> None:
    """Wait for the event of `stop_on_signals`, in the main thread.

    A signal that comes just before a wait without end is noted by the interpreter and acted on
    only once the main thread runs again: a stop was lost that way in 1 of 150 attempts.
    """
    while not stop.wait(SIGNALS_WITHIN_S):
        pass


@contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the block, which polls no event.

    For the main thread, and work that holds nothing that must be ended in order.

    Args:
        stop: of `stop_on_signals`; set already, the block does not begin.
    """
    previous = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        if stop.is_set():
            raise KeyboardInterrupt
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _flush_output() -> None:
    """Flush now what the interpreter would flush at exit, where a closed pipe is not quiet."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
