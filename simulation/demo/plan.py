"""What the demo consists of: folders, ports and one configuration file a process."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from fedge.config import build, to_tree
from fedge.errors import ConfigError
from fedge.settings import PrivacyConfig
from simulation.settings import SimulateConfig

TASK = "fedge.tasks.digits:Digits"


@dataclass(frozen=True)
class DemoOptions:
    """What a person may choose.

    Attributes:
        requests_per_s: predictions asked of each device.
    """

    name: str
    runs: Path = Path("runs")
    num_devices: int = 4
    num_rounds: int = 10
    seed: int = 0
    requests_per_s: float = 25.0
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)


@dataclass(frozen=True)
class DemoPlan:
    """Where everything of one demo run lies; made once, before anything starts.

    Attributes:
        sockets: short folder for the Unix sockets, whose paths have a length limit.
        ports: SuperLink, registry and trainer, free at the time of planning.
    """

    options: DemoOptions
    folder: Path
    sockets: Path
    ports: tuple[int, int, int]

    @property
    def server_dir(self) -> Path:
        """Folder of the server's run: events, checkpoints, registry."""
        return self.folder / "server"

    @property
    def release_key(self) -> Path:
        """Private release key, made for this run alone."""
        return self.folder / "release.key"

    def device_name(self, device: int) -> str:
        """Name and folder name of a device."""
        return f"device-{device}"

    def device_dir(self, device: int) -> Path:
        """State folder of a device."""
        return self.folder / "devices" / self.device_name(device)

    def device_socket(self, device: int) -> Path:
        """Unix socket that a device predicts on."""
        return self.sockets / f"{device}.sock"

    def config_path(self, process: str) -> Path:
        """Configuration file of a process."""
        return self.folder / "config" / f"{process}.toml"

    def log_path(self, process: str) -> Path:
        """Log file of a process."""
        return self.folder / "logs" / f"{process}.log"

    def server_config(self) -> dict[str, Any]:
        """Configuration of ``fedge-server``."""
        superlink, registry, trainer = self.ports
        return {
            **federation_config(self.options, self.server_dir),
            "refine": {"trainer": f"127.0.0.1:{trainer}"},
            "superlink": {"port": superlink},
            "registry": {
                "address": f"127.0.0.1:{registry}",
                "release_key": str(self.release_key),
            },
        }

    def trainer_config(self) -> dict[str, Any]:
        """Configuration of ``fedge-trainer``."""
        return {"address": f"127.0.0.1:{self.ports[2]}", "task": task_config(self.options)}

    def device_config(self, device: int) -> dict[str, Any]:
        """Configuration of one ``fedge-edge``."""
        superlink, registry, _ = self.ports
        return {
            "state_dir": str(self.device_dir(device)),
            "name": self.device_name(device),
            "task": task_config(self.options),
            "privacy": to_tree(self.options.privacy),
            "node": {"superlink": f"127.0.0.1:{superlink}"},
            "registry": {
                "address": f"127.0.0.1:{registry}",
                "release_public_key": f"{self.release_key}.pub",
            },
            "inference": {"socket": str(self.device_socket(device))},
            "training": {"cores": "all"},  # several devices share this machine
        }

    def write(self) -> None:
        """Make the folders and write every configuration file."""
        for folder in ("config", "logs", "server"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self._write("server", self.server_config())
        self._write("trainer", self.trainer_config())
        for device in range(self.options.num_devices):
            self.device_dir(device).mkdir(parents=True)
            self._write(self.device_name(device), self.device_config(device))

    def _write(self, process: str, config: dict[str, Any]) -> None:
        self.config_path(process).write_text(tomli_w.dumps(config))


def task_config(options: DemoOptions) -> dict[str, Any]:
    """Return the task section that every process of a demo shares."""
    return {"name": TASK, "options": {"seed": options.seed}}


def federation_config(options: DemoOptions, run_dir: Path) -> dict[str, Any]:
    """Return the part of the server's configuration that deployment and simulation share."""
    return {
        "run_name": options.name,
        "run_dir": str(run_dir),
        "seed": options.seed,
        "task": task_config(options),
        "rounds": {
            "num_rounds": options.num_rounds,
            "min_devices": options.num_devices,
            "wait_for_devices_s": 60.0,
        },
    }


def simulation_config(options: DemoOptions, run_dir: Path, *, refine: bool) -> SimulateConfig:
    """Return the demo's federation as a simulation, with or without the cloud's half."""
    server = federation_config(options, run_dir)
    server["refine"] = {"trainer": "in-process" if refine else ""}
    tree = {
        "num_clients": options.num_devices,
        "server": server,
        "privacy": to_tree(options.privacy),
    }
    return build(SimulateConfig, tree)


def make_plan(options: DemoOptions) -> DemoPlan:
    """Return a plan with a new folder and free ports.

    Raises:
        ConfigError: a run of that name exists, or its folder cannot be made.
    """
    folder = (options.runs / options.name).resolve()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder} exists already; choose another --name") from None
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}") from error
    sockets = Path(tempfile.mkdtemp(prefix="fedge-"))
    first, second, third = free_ports(3)
    return DemoPlan(options, folder, sockets, (first, second, third))


def free_ports(count: int) -> list[int]:
    """Return distinct TCP ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports
