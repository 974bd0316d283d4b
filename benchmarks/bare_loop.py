"""A training loop as one writes it by hand, for what the trainer is compared with."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from fedge.params import Vector
from fedge.task import Task
from fedge.weights import layout_of, read_vector, write_vector
from server.trainer.batches import draw_batches
from server.trainer.spec import RefineSpec


@dataclass(frozen=True)
class BareRun:
    """What came of it.

    Attributes:
        seconds: of all steps but the first.
    """

    seconds: float
    weights: Vector


def run_bare_loop(
    task: Task,
    weights: Vector,
    spec: RefineSpec,
    device: torch.device,
    *,
    bfloat16: bool = False,
    compiled: bool = False,
) -> BareRun:
    """Train as the trainer would, the same batches in the same order."""
    model = task.build_model()
    write_vector(model, layout_of(model), weights)
    model.to(device).train()
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(
        model.parameters(), spec.learning_rate, weight_decay=spec.weight_decay, fused=True
    )
    proxy = task.cloud_data().proxy
    inputs = torch.from_numpy(proxy.inputs).to(device)
    targets = torch.from_numpy(proxy.targets).to(device)
    started = 0.0
    for step, positions in zip(range(spec.steps), draw_batches(len(proxy), spec), strict=False):
        if step == 1:
            started = _now(device)
        chosen = torch.from_numpy(positions).to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            outputs = model(inputs[chosen])
        loss = task.loss(outputs.float(), targets[chosen]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = _now(device) - started
    return BareRun(seconds, read_vector(model.to("cpu"), layout_of(model)))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
