"""The demo's processes: started in order, watched, stopped together."""

from __future__ import annotations

import subprocess
import sys

from fedge.children import start_child, stop_children
from fedge.closing import Closing
from fedge.errors import FedgeError
from simulation.demo.plan import DemoPlan

LOG_LINES_SHOWN = 5


class DemoProcesses(Closing):
    """Server, trainer and devices as child processes; leaving the block stops them all."""

    def __init__(self, plan: DemoPlan) -> None:
        self._plan = plan
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start_all(self) -> None:
        """Start trainer, server and every device."""
        self._start("trainer", "server.trainer")
        self._start("server", "server", "--exit-when-done")
        for device in range(self._plan.options.num_devices):
            self._start(self._plan.device_name(device), "edge_client")

    def check(self) -> None:
        """Complain of a process that ended although it should not have.

        Raises:
            FedgeError: with the last lines of its log.
        """
        for name, process in self._running.items():
            status = process.poll()
            if status is not None and (name != "server" or status != 0):
                raise FedgeError(f"{name} ended with status {status}:\n{self._log_tail(name)}")

    def server_finished(self) -> bool:
        """Tell whether the server has ended its run and itself."""
        return self._running["server"].poll() == 0

    def close(self) -> None:
        """Stop every process: all are asked at once."""
        stop_children(list(self._running.values()))
        self._running.clear()

    def _start(self, name: str, module: str, *arguments: str) -> None:
        config = self._plan.config_path(name)
        argv = [sys.executable, "-m", module, "--config", str(config), *arguments]
        self._running[name] = start_child(argv, log=self._plan.log_path(name))

    def _log_tail(self, name: str) -> str:
        path = self._plan.log_path(name)
        lines = path.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join([*(f"  {line}" for line in lines), f"  (all of it: {path})"])
