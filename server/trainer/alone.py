"""Refinement by this process alone, without a trainer and its ranks."""

from __future__ import annotations

import torch

from fedge.task import Task
from server.trainer.parallel.build import build_parallel
from server.trainer.parallel.degrees import MeshConfig
from server.trainer.refining import ProxyData, Refining


def refining_alone(task: Task, data: ProxyData | None = None) -> Refining:
    """Return what refines with a task's proxy data, or with these."""
    if data is None:
        cloud = task.cloud_data()
        data = ProxyData(cloud.proxy, cloud.unlabelled)
    return Refining(task, build_parallel(task, MeshConfig(), 1, torch.device("cpu")), data)
