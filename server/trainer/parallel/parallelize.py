"""Divide a stage among processes: tensors, then recomputation, compilation, and data parallelism.

The order is torchtitan's: each step sees the modules as the one before left them.
Source: https://github.com/pytorch/torchtitan
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle
from torch.utils.checkpoint import checkpoint

from fedge.split_plan import SplitPlan
from server.trainer.parallel.degrees import MeshConfig
from server.trainer.parallel.mesh import Mesh


def parallelize(stage: nn.Module, mesh: Mesh, config: MeshConfig, plan: SplitPlan | None) -> None:
    """Divide a stage, or a whole model, in place, as the mesh and the configuration say."""
    if mesh.degrees.tensor > 1:
        assert plan is not None
        divide_layers(stage, mesh, plan)
    blocks = blocks_of(stage, plan)
    for block in blocks:
        if config.checkpointing:
            # Patched, not wrapped: a wrapper would change the tensors' names.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if config.compile:
            block.compile()
    if config.precision == "bfloat16" and mesh.degrees.shard == 1:
        stage.forward = _in_bfloat16(stage.forward, mesh.device.type)
    if mesh.degrees.shard > 1:  # casts by itself, before it sends
        _shard(stage, blocks, mesh, config)


def divide_layers(stage: nn.Module, mesh: Mesh, plan: SplitPlan) -> None:
    """Leave each process of the tensor dimension its columns and rows of the layers."""
    styles: dict[str, ParallelStyle] = {}
    for name, _ in stage.named_modules():
        if plan.is_column(name):
            styles[name] = ColwiseParallel()
        elif plan.is_row(name):
            styles[name] = RowwiseParallel()
    parallelize_module(stage, mesh.part("tensor"), styles)


def blocks_of(stage: nn.Module, plan: SplitPlan | None) -> list[nn.Module]:
    """Return the repeated modules of a stage; a model without a plan is a single one."""
    if plan is None:
        return [stage]
    names = set(plan.block_names)
    return [module for name, module in stage.named_modules() if name in names]


def _in_bfloat16(forward: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    """Return a forward that computes in bfloat16 and leaves the weights float32."""

    @wraps(forward)
    def cast(*inputs: Tensor) -> Tensor:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return forward(*inputs)

    return cast


def _shard(stage: nn.Module, blocks: list[nn.Module], mesh: Mesh, config: MeshConfig) -> None:
    """Shard each block and then the rest; the sums of gradients are sums, not means."""
    hybrid = mesh.degrees.replicate > 1
    options: dict[str, Any] = {
        "mesh": mesh.part("replicate", "shard") if hybrid else mesh.part("shard")
    }
    if config.precision == "bfloat16":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for module in dict.fromkeys((*blocks, stage)):
        fully_shard(module, **options)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            # Gloo has no operation that divides while it sums, which is what factors become.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
