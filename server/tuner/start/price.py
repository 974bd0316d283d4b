"""What a model costs on a device: the time of one prediction, and bytes."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.errors import ModelError
from fedge.settings import TaskConfig
from fedge.task import EdgeFiles, Task, load_task
from fedge.tflite.plan import Plan
from fedge.tflite.runner import Runner
from fedge.weights import build_checked_model, layout_of
from server.convert import MISSING_CONVERTER, convert_in_subprocess, find_converter

NUM_WARM_UPS, NUM_PREDICTIONS = 50, 500


@dataclass(frozen=True)
class Price:
    """Cost of one model.

    Attributes:
        latency_s: median of one example on one thread of this machine.
        size_bytes: of the TFLite file.
    """

    latency_s: float
    size_bytes: int


def price_of(task_config: TaskConfig) -> Price:
    """Return the cost of a task's model, converted for devices unless the task ships its template.

    Raises:
        FedgeError: there is no converter, or it or the runtime refuses the model.
    """
    task = load_task(task_config.name, **task_config.options)
    with tempfile.TemporaryDirectory(prefix="fedge-price-") as folder:
        files = task.edge_files()
        if files is None or not _is_of(files, task):
            files = _converted(task_config, Path(folder))
        try:
            model = files.template.read_bytes()
        except OSError as error:
            raise ModelError(f"{files.template}: {error.strerror}") from error
    return Price(_latency_s(model, task.cloud_data().proxy.inputs[0]), len(model))


def _is_of(files: EdgeFiles, task: Task) -> bool:
    """Tell whether a shipped template is one of this model: tasks may ship theirs at any size."""
    try:
        plan = Plan.from_json(files.plan.read_text())
    except OSError as error:
        raise ModelError(f"{files.plan}: {error.strerror}") from error
    return plan.layout.digest == layout_of(build_checked_model(task)).digest


def _converted(task: TaskConfig, folder: Path) -> EdgeFiles:
    python = find_converter()
    if python is None:
        raise ModelError(MISSING_CONVERTER)
    return convert_in_subprocess(task.name, task.options, folder, python)


def _latency_s(model: bytes, example: Any) -> float:
    runner = Runner(model)
    example = example.astype(runner.input_dtype)
    seconds = []
    for _ in range(NUM_WARM_UPS + NUM_PREDICTIONS):
        began = time.perf_counter()
        runner.run_one(example)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[NUM_WARM_UPS:])
