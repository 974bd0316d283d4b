"""Flower's own processes: the only file that starts them.

``flower-superlink`` runs as a child on loopback with its state in memory (checkpoint and devices
hold all that must survive); it starts ``flower-superexec``, which starts the ServerApp. Runs are
submitted, listed and stopped with the ``flwr`` command, as a person would.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from fedge.children import start_child
from fedge.durable import write_atomically
from fedge.errors import ConfigError, DeadlineExceeded, TransportError
from server.app_bundle import AppBundle
from server.processes import ProcessTree

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
CONNECTION = "fedge"
READY_S = 60.0
COMMAND_S = 60.0
END_GRACE_S = 2.0
MAX_LOG_BYTES = 32 * 1024 * 1024
_POLL_S = 0.05
_SERVER_APP = "flwr-serverapp"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*: \S")


class StopRequested(Exception):
    """The supervisor was asked to stop while it waited for Flower."""


@dataclass(frozen=True)
class Health:
    """Which of Flower's processes run."""

    superlink: bool
    server_app: bool


class SuperLink:
    """One SuperLink, and everything it starts.

    Use it from the main thread only: the kernel ends a child when the thread that started it ends.

    Args:
        port: on loopback.
        run_dir: absolute; gets ``superlink.log`` and the folder ``flower``.
        stop: once set, whatever waits raises `StopRequested`.
    """

    def __init__(self, port: int, run_dir: Path, stop: threading.Event) -> None:
        self.port = port
        self.log_path = run_dir / "superlink.log"
        self._home = run_dir / "flower"
        self._stop = stop
        self._has_old_runs = False
        self._process: subprocess.Popen[bytes] | None = None
        self._tree: ProcessTree | None = None

    @property
    def address(self) -> str:
        """Where nodes, the ServerApp and ``flwr`` reach it."""
        return f"{HOST}:{self.port}"

    def check_port(self) -> None:
        """Refuse a port that somebody else listens on.

        Raises:
            ConfigError: it is taken.
        """
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                hint = (
                    "end the process that uses it or choose another" if taken else "choose another"
                )
                raise ConfigError(
                    f"cannot use port {self.port} of {HOST}: {error.strerror}; {hint}",
                    key="superlink.port",
                ) from error

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            ConfigError: the port is taken, or the program or a file cannot be opened.
            TransportError: it ended, or did not answer in time.
            StopRequested: while waiting.
        """
        self.check_port()
        self._write_home()
        _rotate(self.log_path)
        argv = [
            _program("flower-superlink"),
            *("--insecure", "--host", HOST, "--port", str(self.port)),
            *("--isolation", "subprocess"),
            "--disable-runtime-dependency-installation",
        ]
        process = start_child(argv, log=self.log_path, environment=self._environment())
        self._process, self._has_old_runs = process, False
        self._tree = ProcessTree(process.pid)
        give_up = time.monotonic() + READY_S
        while not self._answers():
            if process.poll() is not None:
                raise TransportError(
                    f"Flower's SuperLink ended with status {process.returncode}: "
                    f"{_last_line(self.log_path)} (all of it: {self.log_path})"
                )
            if time.monotonic() > give_up:
                raise DeadlineExceeded(
                    f"Flower's SuperLink did not answer on {self.address} within {READY_S:g} s; "
                    f"see {self.log_path}"
                )
            self._wait()

    def look(self) -> Health:
        """Return what runs now; call it now and then, so that no child is lost."""
        members = [] if self._tree is None else self._tree.alive()
        return Health(
            superlink=self._process is not None and self._process.poll() is None,
            server_app=any(_SERVER_APP in process.command for process in members),
        )

    def end(self) -> None:
        """End the SuperLink and everything it ever started."""
        if self._tree is not None:
            self._tree.end(END_GRACE_S)
        if self._process is not None:
            self._process.wait()
        self._process, self._tree = None, None

    def submit(self, bundle: AppBundle) -> int:
        """Submit a run and return its id; runs left from before are stopped first.

        Raises:
            TransportError: Flower refuses or does not answer.
            StopRequested: while waiting.
        """
        if self._has_old_runs:  # looking takes a second or two
            for run_id in self._unfinished_runs():
                log.info("stopping run %s, which an earlier start left behind", run_id)
                self._flwr("stop", run_id, CONNECTION)
        self._has_old_runs = True
        answer = self._flwr(
            "run", str(bundle.folder), CONNECTION, "--run-config", str(bundle.run_config)
        )
        return int(answer["run-id"])

    def save_log(self, run_id: int, path: Path) -> str:
        """Write what a run's ServerApp logged to a file and return the error that ended it."""
        with contextlib.suppress(TransportError, OSError):
            path.unlink(missing_ok=True)
            self._command(path, "log", str(run_id), CONNECTION, "--show")
        return last_error(path)

    def _unfinished_runs(self) -> list[str]:
        runs = self._flwr("ls", CONNECTION)["runs"]
        return [run["run-id"] for run in runs if not run["status"].startswith("finished")]

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a ``flwr`` command and return what it answers as JSON."""
        path = self._home / "flwr.log"
        path.unlink(missing_ok=True)
        self._command(path, *arguments, "--format", "json")
        text = path.read_text(errors="replace")
        try:
            answer: dict[str, Any] = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
        except ValueError as error:
            raise TransportError(f"flwr {arguments[0]} failed: {_last_line(path)}") from error
        if not answer.get("success"):
            reason = " ".join(str(answer.get("error-message", "no reason given")).split())
            raise TransportError(f"flwr {arguments[0]} failed: {reason}")
        return answer

    def _command(self, output: Path, *arguments: str) -> None:
        argv = [_program("flwr"), *arguments]
        process = start_child(argv, log=output, environment=self._environment())
        give_up = time.monotonic() + COMMAND_S
        try:
            while process.poll() is None:
                if time.monotonic() > give_up:
                    raise DeadlineExceeded(f"flwr {arguments[0]} took longer than {COMMAND_S:g} s")
                self._wait()
        finally:
            process.kill()
            process.wait()

    def _wait(self) -> None:
        if self._stop.wait(_POLL_S):
            raise StopRequested

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _write_home(self) -> None:
        connection = {"address": self.address, "insecure": True}
        config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            write_atomically(self._home / "config.toml", tomli_w.dumps(config).encode())
        except OSError as error:
            raise ConfigError(
                f"cannot write {self._home}: {error.strerror}", key="run_dir"
            ) from error

    def _environment(self) -> dict[str, str]:
        """Return what Flower's processes need beside the variables that keep them quiet."""
        folder = Path(sys.executable).parent
        # Without NO_PROXY a proxy of the company would be asked for the way to loopback.
        direct = ",".join(filter(None, (os.environ.get("NO_PROXY"), HOST, "localhost")))
        return {
            "FLWR_HOME": str(self._home),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
            "PATH": os.pathsep.join((str(folder), os.environ.get("PATH", os.defpath))),
            "NO_PROXY": direct,
            "no_proxy": direct,
            "PYTHONUNBUFFERED": "1",
        }


def _program(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise ConfigError(
            f'{path} is missing: run pip install "fedge[server]" with {sys.executable}'
        )
    return str(path)


def _rotate(path: Path) -> None:
    """Set a large log aside, replacing the one set aside before."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))


def last_error(path: Path) -> str:
    """Return the exception that a log's last traceback ends with."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return "its log cannot be had"
    _, found, traceback = text.rpartition("Traceback (most recent call last):")
    lines = [line for line in traceback.splitlines() if _EXCEPTION.match(line)]
    return lines[-1].strip() if found and lines else "it ended without an error in its log"


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return "nothing was logged"
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was logged")
