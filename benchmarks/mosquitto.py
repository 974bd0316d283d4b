"""A real mosquitto of a benchmark's or test's own, with the durability settings that we ship."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from benchmarks.harness import CannotRun

SHIPPED = Path(__file__).parent.parent / "deploy" / "mosquitto.conf"
START_S = 30.0


def find_program(name: str = "mosquitto") -> str:
    """Return one of the broker's programs.

    Raises:
        CannotRun: it is missing; says how to get it.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise CannotRun(f"{name} is not installed: apt-get install mosquitto")
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shipped_settings(folder: Path) -> list[str]:
    """Return what we ship, up to its listeners, with persistence in a folder of its own."""
    lines = []
    for line in SHIPPED.read_text().splitlines():
        if line.startswith("listener "):
            break
        if line and not line.startswith("#"):
            lines.append(line)
    assert "persistence true" in lines
    return [
        f"persistence_location {folder}/" if line.startswith("persistence_location") else line
        for line in lines
    ]


class Mosquitto:
    """One broker on one port; killed and started again at will.

    Args:
        folder: for its files.
        settings: in place of those that we ship.
        listener: what follows the line of its listener.
        verbose: note every packet in its log.
    """

    def __init__(
        self,
        folder: Path,
        settings: list[str] | None = None,
        listener: tuple[str, ...] = ("allow_anonymous true",),
        *,
        verbose: bool = True,
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self._settings = shipped_settings(folder) if settings is None else settings
        self._listener = listener
        self._verbose = ["-v"] if verbose else []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "mosquitto.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            CannotRun: it is not installed, or does not come up.
        """
        config = self.folder / "mosquitto.conf"
        user = ["user root"] if os.geteuid() == 0 else []
        lines = [*self._settings, *user, f"listener {self.port} 127.0.0.1", *self._listener]
        config.write_text("\n".join(lines) + "\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [find_program(), *self._verbose, "-c", str(config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise CannotRun(f"mosquitto does not listen: {self.log}")
            time.sleep(0.01)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, with -9 if nothing else is said."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False
