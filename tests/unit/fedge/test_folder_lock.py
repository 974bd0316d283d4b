"""Folders that one process at a time writes to."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.folder_lock import LOCK_FILE, locked

_HOLD = """
import sys
from pathlib import Path
from fedge.folder_lock import locked
with locked(Path(sys.argv[1]), "simulation", key="run_dir"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_made_and_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "a" / "b", "simulation", key="run_dir"):
            assert (tmp_path / "a" / "b" / LOCK_FILE).exists()


def test_a_folder_in_use_is_refused_until_its_owner_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=r"run_dir: .* used by another simulation: end it"),
            locked(tmp_path, "simulation", key="run_dir"),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path, "simulation", key="run_dir"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="run_dir: cannot use"),
        locked(tmp_path / "file" / "run", "simulation", key="run_dir"),
    ):
        pass
