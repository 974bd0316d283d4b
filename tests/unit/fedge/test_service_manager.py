import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedge.service_manager import ServiceManager
from tests.edge_process import NotifySocket


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    manager = NotifySocket(tmp_path / "notify")
    yield manager
    manager.close()


def test_each_word_is_one_datagram(systemd: NotifySocket) -> None:
    manager = ServiceManager(str(systemd.path), 30.0)
    manager.ready()
    manager.alive()
    manager.status("two\nlines  here")
    manager.stopping()
    assert systemd.drain() == [
        ("READY", "1"),
        ("WATCHDOG", "1"),
        ("STATUS", "two lines here"),
        ("STOPPING", "1"),
    ]


def test_an_abstract_address_begins_with_an_at_sign() -> None:
    name = f"fedge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(10)
        ServiceManager(f"@{name}").ready()
        assert receiver.recv(100) == b"READY=1"


def test_the_environment_is_read_once_and_hidden_from_children(systemd: NotifySocket) -> None:
    environ = {
        "NOTIFY_SOCKET": str(systemd.path),
        "WATCHDOG_USEC": "1500000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/root",
    }
    manager = ServiceManager.from_environment(environ)
    assert environ == {"HOME": "/root"}
    assert manager.is_there
    assert manager.watchdog_s == 1.5


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
    ],
)
def test_a_watchdog_of_somebody_else_is_not_ours(environ: dict[str, str]) -> None:
    assert ServiceManager.from_environment(environ).watchdog_s is None


def test_nobody_listening_stops_nothing(tmp_path: Path) -> None:
    assert not ServiceManager().is_there
    ServiceManager().ready()
    ServiceManager(str(tmp_path / "nothing-here")).ready()
