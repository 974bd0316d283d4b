"""A real fedge-edge under a stand-in for systemd: READY, WATCHDOG, STATUS and STOPPING."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge_process import EdgeProcess, NotifySocket, wait_until

pytestmark = pytest.mark.slow

WATCHDOG_USEC = "1500000"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    manager = NotifySocket(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[EdgeProcess]:
    program = [sys.executable, "-m", "tests.integration.hanging_device", str(tmp_path / "hang")]
    device = EdgeProcess(tmp_path, program=program)
    yield device
    device.kill()


def environment(systemd: NotifySocket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": WATCHDOG_USEC}


def test_ready_comes_when_it_serves_and_signs_of_life_follow(
    device: EdgeProcess, systemd: NotifySocket
) -> None:
    device.start(environment=environment(systemd))
    wait_until(lambda: systemd.count("READY"), "ready")
    assert len(device.predict().output.data) == 40
    seen = systemd.count("WATCHDOG")
    wait_until(lambda: systemd.count("WATCHDOG") >= seen + 3, "signs of life")
    texts = [value for name, value in systemd.drain() if name == "STATUS"]
    assert texts[-1].startswith("serving round 0, 1 predictions; no problem")
    status = device.status()
    assert status is not None
    assert status.healthy
    assert status.predictions == 1  # self-checks are not counted
    assert device.stop() == 0
    names = [name for name, _ in systemd.drain()]
    assert names.count("READY") == 1
    assert names.index("READY") < names.index("WATCHDOG")
    assert names[-1] == "STOPPING"


def test_a_device_that_hangs_from_the_start_is_never_ready(
    device: EdgeProcess, systemd: NotifySocket, tmp_path: Path
) -> None:
    (tmp_path / "hang").touch()
    device.start(environment=environment(systemd))
    device.wait_until_it_answers()
    status = device.status()
    assert status is not None
    assert not status.healthy
    assert "no self-check has passed yet" in status.problem
    assert [name for name, _ in systemd.drain()] == []
    device.stop()


def test_a_hung_engine_stops_the_signs_of_life(
    device: EdgeProcess, systemd: NotifySocket, tmp_path: Path
) -> None:
    device.start(environment=environment(systemd))
    wait_until(lambda: systemd.count("WATCHDOG") >= 2, "signs of life")
    (tmp_path / "hang").touch()

    def is_silent() -> bool:
        seen = systemd.count("WATCHDOG")
        try:
            wait_until(lambda: systemd.count("WATCHDOG") > seen, "a sign of life", within_s=4.5)
        except AssertionError:
            return True
        return False

    wait_until(is_silent, "no more signs of life")
    assert device.is_running  # it is systemd that ends it, by SIGABRT
    device.stop(signal.SIGABRT)
    (tmp_path / "hang").unlink()
    device.start()
    device.wait_until_it_answers()
    [line] = [line for line in device.log.splitlines() if "the last process crashed" in line]
    assert "Fatal Python error: Aborted" in line
    assert "hanging_device.py" in line  # among the stacks of its threads


def test_the_status_command_tells_healthy_from_not(device: EdgeProcess) -> None:
    def ask(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge_client", "status", *options, *device.options()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    gone = ask()
    assert gone.returncode == 1
    assert "not running, or not answering" in gone.stdout
    device.start()
    device.wait_until_it_answers()

    def is_healthy() -> bool:
        status = device.status()
        return status is not None and status.healthy

    wait_until(is_healthy, "healthy")
    device.predict("first")
    table = ask()
    assert table.returncode == 0, table
    assert "1 answered, 0 failed" in table.stdout
    assert "0 labelled, 1 without a label" in table.stdout
    answer = json.loads(ask("--json").stdout)
    assert (answer["healthy"], answer["problem"], answer["predictions"]) == (True, "", 1)
    assert answer["figures"]["samples_unlabelled"] == 1.0
    assert device.stop() == 0
