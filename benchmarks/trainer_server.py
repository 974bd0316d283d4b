"""A trainer in processes of its own, as the benchmarks ask it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import CannotRun

READY = re.compile(r"trainer ready on (\S+)")
START_S = 120


@contextmanager
def served(folder: Path, task: str, options: dict[str, Any], num_ranks: int = 1) -> Iterator[str]:
    """Start a trainer of one or several ranks and yield its address.

    Raises:
        CannotRun: it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "address": "127.0.0.1:0",
        "task.name": task,
        **{f"task.options.{key}": value for key, value in options.items()},
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [sys.executable, *(launcher if num_ranks > 1 else []), "-m", "server.trainer"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    log = folder / f"trainer-{num_ranks}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while (found := READY.search(log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise CannotRun(f"the trainer does not start: {log.read_text()[-500:]}")
        time.sleep(0.05)
    return found[1]
