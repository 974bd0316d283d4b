"""A real mosquitto of a test's own, with the durability settings that we ship."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import pytest

SHIPPED = Path(__file__).parent.parent / "deploy" / "mosquitto.conf"
START_S = 30.0


def find_program(name: str = "mosquitto") -> str:
    """Return one of the broker's programs, or fail the test saying how to get it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install mosquitto")
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shipped_settings(folder: Path) -> list[str]:
    """Return what we ship, up to its listeners, with persistence in a folder of the test's own."""
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
    """

    def __init__(
        self,
        folder: Path,
        settings: list[str] | None = None,
        listener: tuple[str, ...] = ("allow_anonymous true",),
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self._settings = shipped_settings(folder) if settings is None else settings
        self._listener = listener
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
        """Start it and wait until it listens."""
        config = self.folder / "mosquitto.conf"
        user = ["user root"] if os.geteuid() == 0 else []
        lines = [*self._settings, *user, f"listener {self.port} 127.0.0.1", *self._listener]
        config.write_text("\n".join(lines) + "\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [find_program(), "-v", "-c", str(config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while not self._listens():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
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
