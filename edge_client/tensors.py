"""Arrays to and from the tensors of the local prediction service."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import InvalidInput
from protos.fedge.v1 import inference_pb2

_WIRE = {"float32": np.dtype("<f4"), "int32": np.dtype("<i4")}
MAX_DIMENSIONS = 8


def read_tensor(tensor: inference_pb2.Tensor, what: str) -> npt.NDArray[Any]:
    """Return a tensor's array; its shape is checked against its bytes before it is used.

    Args:
        tensor: as it came.
        what: name of the tensor for the error text.

    Raises:
        InvalidInput: dtype, shape and bytes do not fit together; says what was expected.
    """
    dtype = _WIRE.get(tensor.dtype)
    if dtype is None:
        raise InvalidInput(
            f"{what}: expected dtype {' or '.join(_WIRE)}, got {tensor.dtype[:32]!r}"
        )
    shape = tuple(tensor.shape)
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise InvalidInput(
            f"{what}: expected at most {MAX_DIMENSIONS} dimensions, none negative, "
            f"got {list(shape[: MAX_DIMENSIONS + 1])}"
        )
    expected = math.prod(shape) * dtype.itemsize
    if len(tensor.data) != expected:
        raise InvalidInput(
            f"{what}: expected {expected} bytes of {tensor.dtype} {list(shape)}, "
            f"got {len(tensor.data)}"
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def make_tensor(values: npt.ArrayLike) -> inference_pb2.Tensor:
    """Return a tensor of an array: whole numbers as int32, others as float32.

    Raises:
        InvalidInput: a whole number does not fit into int32.
    """
    array = np.asarray(values)
    name = "int32" if array.dtype.kind in "iub" else "float32"
    wire = array.astype(_WIRE[name])
    if name == "int32" and not np.array_equal(wire, array):
        raise InvalidInput("a whole number does not fit into int32")
    return inference_pb2.Tensor(dtype=name, shape=array.shape, data=wire.tobytes())
