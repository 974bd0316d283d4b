"""Making a task's TFLite template and plan. Needs litert-torch: run it through `server.convert`.

Sentinels: the model is converted twice with weights that are all different, and every float of
every constant is traced to the scalar it is. A third conversion, with ordinary weights, must
equal the patched file byte for byte, and its answers those of torch.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import nn

from fedge.errors import ModelError
from fedge.params import Layout, Vector, vector_digest
from fedge.rng import stream, stream_seed
from fedge.task import Task
from fedge.tflite.buffers import list_constants
from fedge.tflite.matching import find_copies, find_unused
from fedge.tflite.patch import Patcher, skeleton_digest
from fedge.tflite.plan import Plan
from fedge.tflite.runner import SIGNATURE_PREFIX, Runner
from fedge.tflite.selftest import run_self_test
from fedge.tflite.sentinels import Sentinels
from fedge.weights import check_model, layout_of, read_vector, write_vector

BATCH_SIZES = (1, 8, 32)
_TOLERANCE = 1e-4


def make_template(task: Task) -> tuple[bytes, Plan]:
    """Return a template that holds the task's initial weights, and its plan.

    Raises:
        ModelError: the converter is missing, refuses the model, or folds its weights.
        TaskError: the model cannot be used with fedge at all.
    """
    with torch.random.fork_rng():
        torch.manual_seed(stream_seed(0, "template"))
        model = check_model(task.build_model()).eval().requires_grad_(False)
    layout = layout_of(model)
    initial = read_vector(model, layout)
    inputs = _example_inputs(task)
    sentinels = (Sentinels(layout.size, seed=1), Sentinels(layout.size, seed=2))
    files = (
        _convert(model, layout, sentinels[0].weights, inputs),
        _convert(model, layout, sentinels[1].weights, inputs),
    )
    draft = _make_plan(layout, files, sentinels, _ties(model), initial)
    _check_conversion(model, draft, files[0], inputs)
    template = Patcher(files[0], draft).patch(layout, initial)
    Patcher(template, draft).shipped_weights()
    return template, draft


def _make_plan(
    layout: Layout,
    files: tuple[bytes, bytes],
    sentinels: tuple[Sentinels, Sentinels],
    ties: tuple[tuple[str, str], ...],
    initial: Vector,
) -> Plan:
    constants = list_constants(files[0])
    if len(files[0]) != len(files[1]) or constants != list_constants(files[1]):
        raise ModelError("the converted graph depends on the weights; it cannot be patched")
    copies = find_copies(layout, files, constants, sentinels)
    aliases = {alias for alias, _ in ties}
    unused = tuple(name for name in find_unused(layout, copies) if name not in aliases)
    held = initial.copy()
    for name, view in layout.views(held).items():
        if name in unused:
            view[...] = 0  # as `Patcher.extract` reads them
    return Plan(
        layout=layout,
        copies=copies,
        ties=ties,
        unused=unused,
        template_size_bytes=len(files[0]),
        skeleton=skeleton_digest(files[0], copies),
        shipped_weights=vector_digest(held),
    )


def _check_conversion(model: nn.Module, plan: Plan, template: bytes, inputs: Any) -> None:
    """Refuse a plan whose patched file is not what converting the same weights gives."""
    layout = plan.layout
    ordinary = stream(0, "template-check").standard_normal(layout.size).astype(np.float32) * 0.2
    views = layout.views(ordinary)
    for alias, source in plan.ties:
        views[alias][...] = views[source]
    patched = Patcher(template, plan).patch(layout, ordinary)
    if patched != _convert(model, layout, ordinary, inputs):
        raise ModelError(
            "a patched template differs from a conversion of the same weights; "
            "this model cannot be patched"
        )
    expected = model(torch.from_numpy(inputs)).numpy()
    run_self_test(Runner(patched).run, inputs, expected, _TOLERANCE)


def _convert(model: nn.Module, layout: Layout, weights: Vector, inputs: Any) -> bytes:
    """Return a TFLite file with these weights in it, one signature a batch size."""
    write_vector(model, layout, weights)
    # The converter's progress bars; read while it is imported.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    try:
        import litert_torch
    except ImportError as error:
        raise ModelError(f"litert-torch is not installed here or is broken: {error}") from error
    try:
        signatures = litert_torch
        for size in BATCH_SIZES:
            example = torch.from_numpy(inputs[:size])
            signatures = signatures.signature(f"{SIGNATURE_PREFIX}{size}", model, (example,))
        return bytes(signatures.convert().model_content())
    except Exception as error:  # the converter's boundary: it raises whatever its parts raise
        raise ModelError(
            f"the converter refuses the model: {type(error).__name__}: {str(error)[:500]}"
        ) from error


def _ties(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return (alias, source) of tensors that share memory; writing them, the last one stays."""
    names: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel():
            names.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    return tuple((alias, group[-1]) for group in names.values() for alias in group[:-1])


def _example_inputs(task: Task) -> Any:
    """Return as many real inputs as the largest batch, repeated if there are fewer."""
    inputs = task.cloud_data().proxy.inputs
    if len(inputs) == 0:
        raise ModelError(f"task {task.name}: its proxy data are empty; one example is needed")
    size = max(BATCH_SIZES)
    return np.ascontiguousarray(np.resize(inputs, (size, *inputs.shape[1:])))
