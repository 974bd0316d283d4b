"""One demo run, from the first process to the last picture."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from fedge.cli import interruptible
from fedge.durable import write_atomically
from fedge.errors import DeadlineExceeded, FedgeError
from fedge.task import Task, load_task
from server.release_key import load_or_create_release_key
from simulation.demo.baselines import measure_baselines
from simulation.demo.devices import DeviceReport, device_version, fill_stores, report_device
from simulation.demo.load import LoadGenerator, LoadSnapshot
from simulation.demo.plan import DemoPlan, task_config
from simulation.demo.plots import draw
from simulation.demo.processes import DemoProcesses
from simulation.demo.summary import complaints, summarize
from simulation.demo.view import DemoView, summary_table
from simulation.jsonl import read_jsonl

POLL_S = 0.25
FEDERATION_DEADLINE_S = 600.0
SETTLE_DEADLINE_S = 20.0


class Demo:
    """Run the federation of a plan and leave its figures in the plan's folder.

    Args:
        stopped: set when a person asked to stop.
    """

    def __init__(self, plan: DemoPlan, console: Console, stopped: threading.Event) -> None:
        self._plan = plan
        self._console = console
        self._stopped = stopped
        self._view = DemoView(console, plan.options.num_rounds, plan.options.num_devices)

    def run(self) -> list[str]:
        """Run everything; returns what went wrong, one line each, or nothing."""
        try:
            with interruptible(self._stopped):
                task = self._prepare()
            rounds, devices, load = self._federate(task)
            with interruptible(self._stopped):
                return self._report(rounds, devices, load)
        except KeyboardInterrupt:
            self._view.stage(f"Stopped; what was written is in {self._plan.folder}")
            raise
        finally:
            shutil.rmtree(self._plan.sockets, ignore_errors=True)

    def _prepare(self) -> Task:
        plan = self._plan
        section = task_config(plan.options)
        task = load_task(section["name"], **section["options"])
        plan.write()
        load_or_create_release_key(plan.release_key)
        fill_stores(plan, task)
        return task

    def _report(
        self,
        rounds: Sequence[Mapping[str, Any]],
        devices: Sequence[DeviceReport],
        load: LoadSnapshot,
    ) -> list[str]:
        plan = self._plan
        if len(rounds) < 2:
            raise FedgeError(f"no round was committed; see {plan.folder / 'logs'}")
        lines = "".join(json.dumps(metrics) + "\n" for metrics in rounds)
        write_atomically(plan.folder / "metrics.jsonl", lines.encode())
        self._view.stage("Measuring what each half reaches alone, with the same seeds and budget")
        summary = summarize(
            rounds,
            devices,
            load,
            measure_baselines(plan.options, plan.folder / "baselines"),
            delta=plan.options.privacy.delta,
        )
        self._leave(rounds, summary, load)
        return complaints(summary, plan.options.num_rounds)

    def _federate(
        self, task: Task
    ) -> tuple[list[dict[str, Any]], list[DeviceReport], LoadSnapshot]:
        plan = self._plan
        numbers = range(plan.options.num_devices)
        load = LoadGenerator(
            [plan.device_socket(device) for device in numbers],
            task.cloud_data().test,
            plan.options.requests_per_s,
        )
        self._view.stage(
            f"Starting a server, a cloud trainer and {len(numbers)} devices in {plan.folder}"
        )
        with DemoProcesses(plan) as processes, self._view.running():
            processes.start_all()
            load.start()
            self._wait(processes, load, processes.server_finished, FEDERATION_DEADLINE_S)
            rounds = self._rounds()
            last = rounds[-1]["model_digest"] if rounds else ""

            def settled() -> bool:
                return all(device_version(plan, device) == last for device in numbers)

            self._wait(processes, load, settled, SETTLE_DEADLINE_S, required=False)
            seen = load.stop()
            devices = [report_device(plan, device) for device in numbers]
        return rounds, devices, seen

    def _wait(
        self,
        processes: DemoProcesses,
        load: LoadGenerator,
        done: Callable[[], bool],
        deadline_s: float,
        *,
        required: bool = True,
    ) -> None:
        """Show progress until the condition holds; a process that died or Ctrl-C ends it."""
        give_up = time.monotonic() + deadline_s
        before, asked_at = load.snapshot().num_predictions, time.monotonic()
        while not done():
            if self._stopped.wait(POLL_S):
                raise KeyboardInterrupt
            processes.check()
            now = time.monotonic()
            if now > give_up:
                if required:
                    raise DeadlineExceeded(f"the federation took more than {deadline_s:.0f} s")
                return
            snapshot = load.snapshot()
            rate = (snapshot.num_predictions - before) / (now - asked_at)
            before, asked_at = snapshot.num_predictions, now
            self._view.update(self._rounds(), snapshot, rate)

    def _rounds(self) -> list[dict[str, Any]]:
        return read_jsonl(self._plan.server_dir / "metrics.jsonl")

    def _leave(
        self,
        rounds: Sequence[Mapping[str, Any]],
        summary: Mapping[str, Any],
        load: LoadSnapshot,
    ) -> None:
        folder = self._plan.folder
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
        if not load.latencies_ms:
            raise FedgeError(f"no device answered; see {folder / 'logs'}")
        draw(folder, rounds, summary, load)
        self._console.print(summary_table(summary))
        self._console.print(f"Figures and pictures: {folder}", highlight=False)
