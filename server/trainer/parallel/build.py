"""From a task and a configuration to this process' part of its model."""

from __future__ import annotations

import logging
import os

import torch
from torch import Tensor, nn

from fedge.errors import TaskError
from fedge.split_plan import SplitPlan, split_plan_of
from fedge.task import Task
from fedge.weights import build_checked_model
from server.trainer.parallel.chain import Stage, check_plan, has_tied_tensors
from server.trainer.parallel.degrees import Degrees, MeshConfig, choose_degrees
from server.trainer.parallel.mesh import Mesh
from server.trainer.parallel.model import ParallelModel

log = logging.getLogger(__name__)


def plan_mesh(
    task: Task,
    config: MeshConfig,
    world_size: int,
    *,
    memory_bytes: int,
    batch_size: int | None = None,
) -> Degrees:
    """Return the degrees for a task's model; starts nothing.

    Args:
        memory_bytes: of one process' device.

    Raises:
        ConfigError: the model cannot be divided so; names the key.
        TaskError: the model or its plan cannot be used.
    """
    model = build_checked_model(task)
    plan = split_plan_of(task)
    if plan is not None:
        check_plan(plan, model)
        _check_chain(task, plan, model)
    return choose_degrees(
        config,
        world_size,
        num_parameters=sum(each.numel() for each in model.parameters()),
        memory_bytes=memory_bytes,
        plan=plan,
        batch_size=batch_size,
        tied=has_tied_tensors(model),
    )


def build_parallel(
    task: Task,
    config: MeshConfig,
    world_size: int,
    device: torch.device,
    *,
    batch_size: int | None = None,
) -> ParallelModel:
    """Return this process' part of a task's model; every process calls it."""
    degrees = plan_mesh(
        task,
        config,
        world_size,
        memory_bytes=memory_of(device),
        batch_size=batch_size,
    )
    log.info("%s", degrees.explanation)
    mesh = Mesh(degrees, device)
    return ParallelModel(build_checked_model(task), mesh, config, split_plan_of(task))


def _check_chain(task: Task, plan: SplitPlan, model: nn.Module) -> None:
    """Refuse a chain that computes something else than the model."""
    inputs, expected = _try_out(task, model.eval())
    with torch.no_grad():
        found = Stage(model, plan.chain)(inputs)
    if found.shape != expected.shape or not torch.allclose(found, expected):
        raise TaskError(f"the chain of task {task.name}'s split plan is not its model's forward")


def _try_out(task: Task, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return one input of zeros and what the model makes of it; some take whole numbers alone."""
    for dtype in (torch.float32, torch.int64):
        inputs = torch.zeros(1, *task.input_shape, dtype=dtype)
        try:
            with torch.no_grad():
                return inputs, model(inputs)
        except Exception as error:  # the model is the user's: whatever it raises is its error
            problem = error
    raise TaskError(
        f"the model of task {task.name} takes no zeros of its input_shape {task.input_shape}: "
        f"{type(problem).__name__}: {problem}"
    ) from problem


def memory_of(device: torch.device) -> int:
    """Return the bytes that one process may use; processes of a machine share its memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
