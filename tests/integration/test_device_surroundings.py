"""A real fedge-edge in broken surroundings: it predicts on, or says in one line why it cannot."""

import os
import resource
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge_process import STOP_S, EdgeProcess, wait_until

pytestmark = pytest.mark.slow

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
# Root writes wherever it likes, unless it gives that right away.
OBEYS_MODES = (
    ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[EdgeProcess]:
    device = EdgeProcess(tmp_path)
    yield device
    device.kill()


def pid_of(device: EdgeProcess) -> int:
    assert device.process is not None
    return device.process.pid


def children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for t in threads for child in (t / "children").read_text().split()]
    except OSError:
        return []


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def problem_of(device: EdgeProcess) -> str:
    status = device.status()
    return "" if status is None else status.problem


def kept(device: EdgeProcess) -> int:
    status = device.status()
    return -1 if status is None else status.samples_unlabelled


def test_a_full_disk_costs_samples_and_no_prediction(device: EdgeProcess) -> None:
    device.start()
    device.wait_until_it_answers()
    device.predict("before")
    resource.prlimit(pid_of(device), resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for number in range(20):
        assert len(device.predict(f"lost-{number}").output.data) == 40
    assert "samples.db" in problem_of(device)
    resource.prlimit(pid_of(device), resource.RLIMIT_FSIZE, UNLIMITED)
    device.predict("after")
    assert problem_of(device) == ""
    assert kept(device) == 2
    assert device.stop() == 0


def test_a_device_that_starts_on_a_full_disk_predicts_and_keeps_samples_later(
    tmp_path: Path,
) -> None:
    first = EdgeProcess(tmp_path)
    first.start()
    first.wait_until_it_answers()
    first.predict("before")
    assert first.stop() == 0
    device = EdgeProcess(tmp_path, wrapper=["prlimit", "--fsize=0:unlimited"])
    device.log_path = Path(os.devnull)  # the log is on that disk too
    try:
        device.start()
        device.wait_until_it_answers()
        assert device.predict("lost").model.round == 0
        assert "samples.db" in problem_of(device)
        resource.prlimit(pid_of(device), resource.RLIMIT_FSIZE, UNLIMITED)

        def keeps() -> bool:
            device.predict("after")
            return problem_of(device) == ""

        wait_until(keeps, "samples are kept again")
        assert kept(device) == 2
        assert device.stop() == 0
    finally:
        device.kill()


def test_a_folder_that_became_read_only_still_serves(tmp_path: Path) -> None:
    device = EdgeProcess(tmp_path, wrapper=OBEYS_MODES)
    try:
        device.start()
        device.wait_until_it_answers()
        assert device.stop() == 0
        make_read_only(device.state)
        device.start()
        device.wait_until_it_answers()
        assert device.predict("lost").model.round == 0
        assert "samples.db" in problem_of(device)
        assert device.stop() == 0
        assert "cannot be written (Permission denied)" in device.log
        assert "Traceback" not in device.log
    finally:
        device.kill()
        make_writable(device.state)


def test_a_folder_that_never_was_writable_is_refused(tmp_path: Path) -> None:
    device = EdgeProcess(tmp_path, wrapper=OBEYS_MODES)
    device.state.mkdir()
    make_read_only(device.state)
    try:
        device.start()
        assert device.end() == 2
        assert f"error: state_dir: cannot use {device.state}: Permission denied" in device.log
    finally:
        make_writable(device.state)


def test_a_damaged_sample_database_is_said_and_left_alone(device: EdgeProcess) -> None:
    device.state.mkdir()
    damaged = b"not a database at all " * 500
    (device.state / "samples.db").write_bytes(damaged)
    device.start()
    device.wait_until_it_answers()
    assert device.predict("lost").model.round == 0
    assert "file is not a database" in problem_of(device)
    assert device.stop() == 0
    assert (device.state / "samples.db").read_bytes() == damaged


def test_a_socket_path_that_is_too_long_is_refused_at_once(tmp_path: Path) -> None:
    device = EdgeProcess(tmp_path)
    device.socket = tmp_path / ("s" * 108)
    device.start()
    assert device.end() == 2
    [line] = [line for line in device.log.splitlines() if line.startswith("error:")]
    assert line.startswith("error: inference.socket: the path of a Unix socket must have 1 to 107")
    assert not device.state.exists()


def test_a_socket_left_by_kill_9_is_taken_over(device: EdgeProcess) -> None:
    device.start()
    device.wait_until_it_answers()
    device.predict("kept")
    pid = pid_of(device)
    os.kill(pid, signal.SIGKILL)
    device.kill()
    assert stat.S_ISSOCK(device.socket.stat().st_mode)
    device.start()
    device.wait_until_it_answers()
    assert kept(device) == 1
    assert device.stop() == 0
    assert not device.socket.exists()


def test_two_daemons_on_one_folder_do_not_disturb_the_first(
    device: EdgeProcess, tmp_path: Path
) -> None:
    device.start()
    device.wait_until_it_answers()
    (tmp_path / "second").mkdir()
    second = EdgeProcess(tmp_path / "second", state=device.state)
    second.start()
    assert second.end() == 2
    assert f"in use by another daemon (process {pid_of(device)})" in second.log
    third = EdgeProcess(tmp_path / "second")
    third.socket = device.socket
    third.start()
    assert third.end() == 2
    assert f"another daemon is serving on {device.socket}" in third.log
    assert device.predict().model.round == 0


@pytest.mark.parametrize("moment", ["lock", "samples", "child", "socket"])
def test_a_stop_while_starting_is_clean(device: EdgeProcess, moment: str) -> None:
    reached = {
        "lock": lambda: (device.state / "daemon.lock").exists(),
        "samples": lambda: (device.state / "samples.db").exists(),
        "child": lambda: bool(children(pid_of(device))),
        "socket": device.socket.exists,
    }
    device.start()
    wait_until(reached[moment], moment)
    family = children(pid_of(device))
    assert device.stop() == 0
    wait_until(lambda: all(is_gone(child) for child in family), "no orphan", STOP_S)
    assert not device.socket.exists()
    assert "Traceback" not in device.log


def test_the_end_of_the_terminal_stops_it_and_nohup_does_not(tmp_path: Path) -> None:
    for wrapper, survives in (([], False), ([shutil.which("nohup") or "nohup"], True)):
        device = EdgeProcess(tmp_path, wrapper=wrapper)
        try:
            device.start()
            device.wait_until_it_answers()
            if survives:
                os.kill(pid_of(device), signal.SIGHUP)
                assert device.predict().model.round == 0
                assert device.stop() == 0
            else:
                assert device.stop(signal.SIGHUP) == 0
            assert not device.socket.exists()
        finally:
            device.kill()


def make_read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o500 if path.is_dir() else 0o400)


def make_writable(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
