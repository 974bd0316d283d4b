"""Weights between flat vectors and torch modules, and what a module must not contain."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedge.errors import FedgeError, TaskError
from fedge.params import Layout, Vector
from fedge.task import Task


def layout_of(module: nn.Module) -> Layout:
    """Return the layout of a torch module's ``state_dict``.

    Raises:
        TaskError: a tensor is not float32 (counters of BatchNorm are the usual reason).
    """
    state = module.state_dict()
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise TaskError(
                f"model tensor {name} is {tensor.dtype}; every tensor of the state_dict must be "
                "float32 (BatchNorm keeps an integer counter: use GroupNorm)"
            )
    return Layout(tuple(state), tuple(tuple(tensor.shape) for tensor in state.values()))


def read_vector(module: nn.Module, layout: Layout) -> Vector:
    """Copy a torch module's ``state_dict`` into a new vector."""
    return layout.flatten(
        {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
    )


def write_vector(module: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy a vector into a torch module, tensor by tensor, in place."""
    if not vector.flags.writeable:
        vector = vector.copy()  # torch warns of arrays that it could not write to
    with torch.no_grad():
        state = module.state_dict()
        for name, view in layout.views(vector).items():
            state[name].copy_(torch.from_numpy(view))


def check_model(model: nn.Module) -> nn.Module:
    """Return the model, or refuse one that cannot be trained privately and averaged.

    Raises:
        TaskError: it has BatchNorm.
    """
    layers = [name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    if layers:
        raise TaskError(
            f"model layer {layers[0]!r} is BatchNorm: it mixes the examples of a batch, which "
            "breaks differential privacy and averaging; use GroupNorm or LayerNorm "
            f"({len(layers)} such layer{'s' if len(layers) > 1 else ''})"
        )
    return model


def build_checked_model(task: Task) -> nn.Module:
    """Return a fresh model of a task, or refuse one that cannot be learnt by fedge.

    Raises:
        TaskError: it cannot be built, has BatchNorm, or has tensors that are not float32.
    """
    try:
        model = task.build_model()
    except FedgeError:
        raise
    except Exception as error:  # the task is the user's: whatever it raises is its error
        raise TaskError(
            f"the model of task {task.name} cannot be built: {type(error).__name__}: {error}"
        ) from error
    layout_of(check_model(model))
    return model
