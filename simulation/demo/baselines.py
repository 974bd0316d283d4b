"""What each half of the demo reaches alone: the same seeds, budget and test set."""

from __future__ import annotations

from pathlib import Path

from fedge.task import load_task
from simulation.cloud_only import train_cloud_only
from simulation.demo.plan import DemoOptions, simulation_config
from simulation.demo.summary import Baselines
from simulation.runner import simulate


def measure_baselines(options: DemoOptions, folder: Path) -> Baselines:
    """Simulate devices without refinement, and refinement without devices.

    Args:
        folder: where the simulated run is left.
    """
    devices = simulation_config(options, folder, refine=False)
    cloud = simulation_config(options, folder, refine=True)
    task = load_task(devices.server.task.name, **devices.server.task.options)
    return Baselines(
        accuracy_fedavg_only=simulate(devices, task=task).accuracy_test,
        accuracy_cloud_only=train_cloud_only(cloud.server, task),
    )
