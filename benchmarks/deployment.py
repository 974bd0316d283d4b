"""A federation of real processes on loopback: a server and its devices, as ``make demo`` has them.

Unlike the demo it takes any task, and asks no device for predictions.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.harness import CannotRun
from edge_client.sample_store import SampleDatabase
from edge_client.settings import EdgeConfig
from fedge.children import start_child, stop_children
from fedge.config import build
from fedge.errors import DeadlineExceeded, FedgeError
from fedge.task import Task
from server.convert import MISSING_CONVERTER, find_converter
from server.release_key import load_or_create_release_key
from simulation.demo.plan import free_ports
from simulation.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.25
START_S = 300.0
LOG_LINES_SHOWN = 5


@dataclass(frozen=True)
class Deployment:
    """Where one federation lies, and its ports.

    Attributes:
        federation: what server and simulation share of a server's configuration.
        folder: of this run alone; a short path, for the Unix sockets in it.
        ports: SuperLink and registry.
    """

    federation: Mapping[str, Any]
    num_devices: int
    folder: Path
    ports: tuple[int, int]

    @property
    def server_dir(self) -> Path:
        """Run folder of the server."""
        return self.folder / "server"

    def device_dir(self, device: int) -> Path:
        """State folder of a device."""
        return self.folder / f"device-{device}"

    def server_config(self) -> dict[str, Any]:
        """Configuration of ``fedge-server``."""
        rounds = {
            **self.federation["rounds"],
            "min_devices": self.num_devices,
            "wait_for_devices_s": START_S,
        }
        return {
            **self.federation,
            "run_dir": str(self.server_dir),
            "rounds": rounds,
            "superlink": {"port": self.ports[0]},
            "registry": {
                "address": f"127.0.0.1:{self.ports[1]}",
                "release_key": str(self.folder / "release.key"),
            },
        }

    def device_config(self, device: int) -> dict[str, Any]:
        """Configuration of one ``fedge-edge`` that trains on all its samples, without DP."""
        return {
            "state_dir": str(self.device_dir(device)),
            "task": self.federation["task"],
            "privacy": {"enabled": False},
            "store": {"holdout_fraction": 0.0},
            "training": {"cores": "all"},
            "node": {"superlink": f"127.0.0.1:{self.ports[0]}"},
            "registry": {
                "address": f"127.0.0.1:{self.ports[1]}",
                "release_public_key": str(self.folder / "release.key.pub"),
            },
        }


def check_converter(task: Task) -> None:
    """Refuse a task that no device could be given.

    Raises:
        CannotRun: it ships no TFLite model and there is no converter.
    """
    if task.edge_files() is None and find_converter() is None:
        raise CannotRun(f"devices serve what they train: {MISSING_CONVERTER}")


def deploy(
    task: Task,
    federation: Mapping[str, Any],
    num_devices: int,
    folder: Path,
    *,
    deadline_s: float = 900.0,
) -> list[dict[str, Any]]:
    """Run a federation to its last round; returns the lines of ``metrics.jsonl``.

    Args:
        task: what the federation's task section names.
        federation: the server's configuration, but for folder, ports and devices.
        num_devices: each holds what the task gives that client.
        folder: for everything that is written; short and empty.

    Raises:
        FedgeError: a process ended, a device missed a round, or it took too long.
    """
    first, second = free_ports(2)
    deployment = Deployment(federation, num_devices, folder, (first, second))
    _prepare(deployment, task)
    with _running(deployment) as processes:
        _wait(deployment, processes, deadline_s)
    rounds = read_jsonl(deployment.server_dir / "metrics.jsonl")
    _check_rounds(deployment, rounds)
    return rounds


def _prepare(deployment: Deployment, task: Task) -> None:
    """Write every configuration, the release key and each device's samples."""
    folder = deployment.folder
    load_or_create_release_key(folder / "release.key")
    (folder / "server.toml").write_text(tomli_w.dumps(deployment.server_config()))
    for device in range(deployment.num_devices):
        config = deployment.device_config(device)
        (folder / f"device-{device}.toml").write_text(tomli_w.dumps(config))
        deployment.device_dir(device).mkdir()
        settings = build(EdgeConfig, config)
        examples = task.client_data(device, deployment.num_devices)
        with SampleDatabase(settings.samples_path, settings.store) as samples:
            for index in range(len(examples)):
                samples.add(f"sample-{index}", examples.inputs[index], examples.targets[index])


@contextmanager
def _running(deployment: Deployment) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Start the server and every device; leaving the block stops them all."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    modules: dict[str, tuple[str, ...]] = {"server": ("server", "--exit-when-done")}
    modules |= {f"device-{device}": ("edge_client",) for device in range(deployment.num_devices)}
    try:
        for name, (module, *arguments) in modules.items():
            config = str(deployment.folder / f"{name}.toml")
            processes[name] = start_child(
                [sys.executable, "-m", module, "--config", config, *arguments],
                log=_log_of(deployment, name),
                # A ServerApp runs elsewhere, and the task is part of no installed package.
                environment={"PYTHONPATH": str(ROOT)},
            )
        yield processes
    finally:
        stop_children(list(processes.values()))


def _wait(
    deployment: Deployment,
    processes: Mapping[str, subprocess.Popen[bytes]],
    deadline_s: float,
) -> None:
    give_up = time.monotonic() + deadline_s
    while processes["server"].poll() != 0:
        for name, process in processes.items():
            if process.poll() is not None:
                lines = _log_of(deployment, name).read_text(errors="replace").splitlines()
                tail = "\n".join(lines[-LOG_LINES_SHOWN:])
                raise FedgeError(f"{name} ended with status {process.returncode}:\n{tail}")
        if time.monotonic() > give_up:
            raise DeadlineExceeded(f"the federation took more than {deadline_s:.0f} s")
        time.sleep(POLL_S)


def _check_rounds(deployment: Deployment, rounds: list[dict[str, Any]]) -> None:
    """Refuse a run in which a device was missing: it is not what the simulation did."""
    for entry in rounds[1:]:
        if entry["num_accepted"] != deployment.num_devices:
            raise FedgeError(
                f"round {entry['round']}: {entry['num_accepted']} of {deployment.num_devices} "
                f"devices counted; refused: {entry['refused']}"
            )


def _log_of(deployment: Deployment, name: str) -> Path:
    return deployment.folder / f"{name}.log"
