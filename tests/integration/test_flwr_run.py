"""``flwr run .``: the same ServerApp and ClientApp in Flower's own simulation."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation.jsonl import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[2]
STOP_S = 20.0
# Python runs this first in every process below, and it tells which file `server.server_app` is.
WITNESS = """
import os
import sys

def note(event, arguments):
    name = getattr(arguments[0], "co_filename", "") if event == "exec" else ""
    if name.endswith("/server/server_app.py"):
        with open(os.environ["FEDGE_TEST_WITNESS"], "a") as file:
            file.write(name + "\\n")

sys.addaudithook(note)
"""


def processes_of(flwr_home: Path) -> list[int]:
    """Return the processes that were started with a Flower home of ours."""
    wanted = f"FLWR_HOME={flwr_home}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables:
            found.append(int(path.parent.name))
    return found


def end_all(flwr_home: Path) -> None:
    """End the SuperLink that ``flwr`` leaves behind and what it started, by their ids."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_S
        for pid in processes_of(flwr_home):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        while processes_of(flwr_home) and time.monotonic() < deadline:
            time.sleep(0.1)


def foreign_files() -> set[str]:
    """Return what lies in the repository and is neither versioned nor ignored, or is in its root.

    Files that somebody edits meanwhile do not count.
    """
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    caches = {path.name for path in ROOT.glob(".*_cache")}
    root = {path.name for path in ROOT.iterdir()} - caches - {"runs"}
    return {*listed.stdout.splitlines(), *root}


def run_folders() -> set[Path]:
    return set((ROOT / "runs").glob("flwr-*"))


class FlwrRun:
    """One ``flwr run .`` from the root of the repository, with a Flower home of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "flwr"
        self.home.mkdir()
        self.imported = folder / "imported"
        (folder / "witness").mkdir()
        (folder / "witness" / "sitecustomize.py").write_text(WITNESS)
        programs = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "witness"),
            "FEDGE_TEST_WITNESS": str(self.imported),
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.flwr = str(programs / "flwr")
        self._folders_before = run_folders()

    def start(self) -> str:
        """Run it to its end; returns everything it printed."""
        result = subprocess.run(
            [self.flwr, "run", ".", "--stream", "--run-config", "num-rounds=1"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    @property
    def run_folders(self) -> set[Path]:
        return run_folders() - self._folders_before

    def clean_up(self) -> None:
        end_all(self.home)
        assert processes_of(self.home) == []
        for folder in self.run_folders:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def flwr_run(tmp_path: Path) -> Iterator[FlwrRun]:
    run = FlwrRun(tmp_path)
    yield run
    run.clean_up()


def test_flwr_run_trains_a_round_and_writes_nothing_but_its_run_folder(flwr_run: FlwrRun) -> None:
    before = foreign_files()
    printed = flwr_run.start()
    assert foreign_files() - before == set()

    (run_dir,) = flwr_run.run_folders
    assert f"the run folder is {run_dir}\n" in printed
    rounds = read_jsonl(run_dir / "metrics.jsonl")
    assert [line["round"] for line in rounds] == [0, 1], printed
    assert (rounds[1]["num_selected"], rounds[1]["num_accepted"]) == (2, 2)
    assert rounds[1]["refused"] == {}
    assert rounds[1]["applied"]
    assert all(0 < epsilon <= 8.0 * (1 + 1e-9) for epsilon in rounds[1]["epsilon"].values())
    assert rounds[1]["accuracy_test"] > rounds[0]["accuracy_test"]

    # facts.md, 12: the copy in the bundle and the installed one are both possible.
    (bundle,) = (flwr_run.home / "apps").iterdir()
    copies = {
        str(bundle / "server" / "server_app.py"): "the bundle's copy",
        str(ROOT / "server" / "server_app.py"): "the installed one",
    }
    imported = set(flwr_run.imported.read_text().split())
    said = [copies.get(path, f"neither: {path}") for path in sorted(imported)]
    assert len(imported) == 1, f"server.server_app was imported from {said}"
    assert imported <= copies.keys(), f"server.server_app is {said}"
    print(f"server.server_app is {said[0]}")
