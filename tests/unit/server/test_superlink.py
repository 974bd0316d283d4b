"""What can be told about Flower's processes without starting them; the rest: tests/integration."""

import socket
import threading
from pathlib import Path

import pytest

from fedge.errors import ConfigError, TransportError
from server import superlink
from server.superlink import Health, SuperLink, last_error

LOG = """INFO : round 1
Traceback (most recent call last):
  File "a.py", line 1, in first
KeyError: 'an earlier one'
INFO : going on
Traceback (most recent call last):
  File "b.py", line 2, in main
    raise CheckpointError("disk")
fedge.errors.CheckpointError: cannot write: no space
\x1b[91mERROR\x1b[0m: Exit Code: 201

For more information, visit: <https://flower.ai>
"""


def test_the_last_tracebacks_exception_is_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "serverapp.log"
    path.write_text(LOG)
    assert last_error(path) == "fedge.errors.CheckpointError: cannot write: no space"


@pytest.mark.parametrize("content", ["", "INFO: a line that only looks like an exception\n"])
def test_a_log_without_a_traceback_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "serverapp.log"
    path.write_text(content)
    assert last_error(path) == "it ended without an error in its log"
    assert last_error(tmp_path / "missing") == "its log cannot be had"


def test_what_was_never_started_does_not_run_and_can_be_ended(tmp_path: Path) -> None:
    link = SuperLink(free_port(), tmp_path, threading.Event())
    assert link.look() == Health(superlink=False, server_app=False)
    link.end()
    assert link.look() == Health(superlink=False, server_app=False)


def test_a_port_is_taken_only_while_somebody_listens(tmp_path: Path) -> None:
    link = SuperLink(free_port(), tmp_path, threading.Event())
    with socket.socket() as other:
        other.bind(("127.0.0.1", link.port))
        other.listen()
        with pytest.raises(ConfigError, match=r"superlink\.port: .*end the process that uses it"):
            link.check_port()
    link.check_port()


def test_a_superlink_that_ends_at_once_is_told_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "flower-superlink"
    program.write_text("#!/bin/sh\necho first\necho database is locked\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "_program", lambda _name: str(program))
    link = SuperLink(free_port(), tmp_path, threading.Event())
    with pytest.raises(TransportError, match="ended with status 3: database is locked"):
        link.start()
    link.end()


def test_a_large_log_is_set_aside_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink, "MAX_LOG_BYTES", 10)
    monkeypatch.setattr(superlink, "_program", lambda _name: "/bin/false")
    (tmp_path / "superlink.log").write_text("x" * 11)
    link = SuperLink(free_port(), tmp_path, threading.Event())
    with pytest.raises(TransportError):
        link.start()
    link.end()
    assert (tmp_path / "superlink.log.1").read_text() == "x" * 11
    assert (tmp_path / "superlink.log").read_text() == ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
