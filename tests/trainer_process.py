"""A real trainer in a process of its own, for the tests that kill it."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
READY = re.compile(r"trainer ready on (\S+)")


class TrainerProcess:
    """``fedge-trainer`` on a free port; its output goes to a file.

    Args:
        log: that file.
        settings: ``key=value`` overrides.
        ranks: more than one starts it under torchrun, which starts all anew this many times.
    """

    def __init__(self, log: Path, *settings: str, ranks: int = 1, restarts: int = 0) -> None:
        self.log = log
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
        overrides = ("address=127.0.0.1:0", "task.name=tests.tiny_task:TinyTask", *settings)
        command = [sys.executable, *(launcher if ranks > 1 else []), "-m", "server.trainer"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *(part for each in overrides for part in ("--set", each))],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, *, times: int = 1, timeout_s: float = 90) -> str:
        """Return the address that it serves on, once it said so that many times."""
        deadline = time.monotonic() + timeout_s
        while len(found := READY.findall(self.output)) < times:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return str(found[-1])

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    @property
    def ranks(self) -> list[int]:
        """Process ids of the ranks that torchrun started; each leads a session of its own."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return sorted(map(int, children.read_text().split()))

    def kill_last_rank(self) -> None:
        """Kill the rank that torchrun started last."""
        os.kill(self.ranks[-1], signal.SIGKILL)

    def kill_rank(self, rank: int) -> None:
        """Kill one rank, of those that its torchrun started last."""
        os.kill(next(each for each in self.ranks if _rank_of(each) == rank), signal.SIGKILL)

    def kill(self) -> None:
        """End it, and all that it started, at once."""
        if self.process.poll() is None:
            for each in (*self.ranks, self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> TrainerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _rank_of(process: int) -> int | None:
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((int(each[5:]) for each in variables if each.startswith(b"RANK=")), None)


@contextmanager
def at_first_progress(action: Callable[[], object]) -> Iterator[list[float]]:
    """Do something as soon as the refiner logs a step of the trainer.

    Yields:
        The time (monotonic) after it was done, once it was.
    """
    done: list[float] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not done and "refinement: step" in record.getMessage():
                action()
                done.append(time.monotonic())

    log, watch = logging.getLogger("server.refine"), Watch()
    level = log.level
    log.addHandler(watch)
    log.setLevel(logging.DEBUG)
    try:
        yield done
    finally:
        log.removeHandler(watch)
        log.setLevel(level)
