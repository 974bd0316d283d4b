"""Examples as torch tensors, and the checks that name the example at fault."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedge.errors import TaskError
from fedge.task import Examples

# Of more numbers numpy's BLAS would start threads of its own.
_FEW = 8192


def to_tensors(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return copies of inputs and targets as tensors.

    Raises:
        TaskError: an input or target is NaN or infinite; names the first such example.
    """
    _check_examples(examples)
    return torch.tensor(examples.inputs), torch.tensor(examples.targets)


def view_tensors(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return inputs and targets as tensors that share the arrays' memory where torch can.

    Raises:
        TaskError: an input or target is NaN or infinite; names the first such example.
    """
    _check_examples(examples)
    return _view(examples.inputs), _view(examples.targets)


def _view(values: npt.NDArray[Any]) -> Tensor:
    # Torch warns of arrays that it could not write to, and takes no negative strides.
    shareable = values.flags.writeable and values.flags.c_contiguous
    return torch.from_numpy(values) if shareable else torch.tensor(values)


def _check_examples(examples: Examples) -> None:
    for kind, values in (("input", examples.inputs), ("target", examples.targets)):
        if values.dtype.kind != "f" or _are_finite(values):
            continue
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        raise TaskError(
            f"example {int(np.argmin(finite))} has a non-finite {kind}; nothing was "
            f"trained: remove it ({np.count_nonzero(~finite)} of {len(values)} are so)"
        )


def _are_finite(values: npt.NDArray[Any]) -> bool:
    # A sum of squares is not finite where a number is not, and of few takes a third of the time.
    if (
        values.dtype == np.float32
        and values.size <= _FEW
        and math.isfinite(np.vdot(values, values))
    ):
        return True
    return bool(np.isfinite(values).all())


def check_finite(values: Tensor, positions: Tensor, what: str, step: int) -> None:
    """Refuse a batch in which one example's value is NaN or infinite.

    Args:
        values: one value an example of the batch, ``[B]``.
        positions: where the batch's examples stand in the data, ``[B]``.
        what: what the values are, for the text.
        step: counted from 0.

    Raises:
        TaskError: names the first such example.
    """
    finite = torch.isfinite(values)
    if not finite.all():
        raise overflow_error(int(positions[int(torch.argmin(finite.int()))]), what, step)


def overflow_error(example: int, what: str, step: int) -> TaskError:
    """Return the error that names the example at whose value training broke off.

    Args:
        what: the kind of value, for the text.
        step: counted from 0.
    """
    return TaskError(
        f"example {example} has a non-finite {what} in step {step + 1}: its values overflow "
        "the model, or training diverged (lower train.learning_rate)"
    )


def check_losses(losses: Tensor, num_examples: int) -> Tensor:
    """Return the losses, or refuse a task that does not give one an example.

    Raises:
        TaskError: the shape is not ``[B]``.
    """
    if losses.shape != (num_examples,):
        raise TaskError(
            f"the task's loss has shape {list(losses.shape)} for {num_examples} examples; it must "
            f"be one loss an example, [{num_examples}] (reduction='none')"
        )
    return losses
