"""One simulation in a process of its own, watched from outside: seconds a round and memory.

``python -m benchmarks.simulation_run CONFIG`` runs a configuration (JSON) and prints one JSON
object: for each round but the first the seconds from commit to commit, and the memory that all of
its processes held when it ended.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.jobs import scratch_folder

_POLL_S = 0.05
_KIB = 1024


@dataclass(frozen=True)
class WatchedRun:
    """A simulation seen from outside.

    Attributes:
        seconds: of each round after the first, from commit to commit.
        rss_bytes: of all processes together at the end of each round.
        peak_rss_bytes: most that all processes together ever held; pages they share count in
            each.
    """

    seconds: list[float]
    rss_bytes: list[int]
    peak_rss_bytes: int


def watch_simulation(config: dict[str, Any]) -> WatchedRun:
    """Run a configuration in a process of its own and in a run folder that is thrown away."""
    with scratch_folder() as folder, tempfile.TemporaryFile() as output:
        config["server"]["run_dir"] = str(folder / "run")
        argv = [sys.executable, "-m", "benchmarks.simulation_run", json.dumps(config)]
        process = subprocess.Popen(argv, stdout=output, cwd=Path(__file__).parents[1])
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, _tree_rss_bytes(process.pid))
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        text = output.read().decode()
    if process.returncode != 0:
        raise RuntimeError(f"the simulation ended with {process.returncode}:\n{text}")
    found = json.loads(text.splitlines()[-1])
    return WatchedRun(found["seconds"], found["rss_bytes"], peak)


def _tree_rss_bytes(pid: int) -> int:
    """Return what a process and all below it hold; those that end in between count nothing."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) * _KIB for line in status if line.startswith("VmRSS"))
    return own + sum(_tree_rss_bytes(int(child)) for child in below)


def main() -> None:
    """Run the configuration that the command line holds."""
    from fedge.config import build
    from simulation.runner import simulate
    from simulation.settings import SimulateConfig

    rounds = simulate(build(SimulateConfig, json.loads(sys.argv[1]))).rounds
    at = [entry["committed_at"] for entry in rounds]
    print(
        json.dumps(
            {
                "seconds": [late - early for early, late in itertools.pairwise(at[1:])],
                "rss_bytes": [entry["simulation"]["rss_bytes"] for entry in rounds[1:]],
            }
        )
    )


if __name__ == "__main__":
    main()
