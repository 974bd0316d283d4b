"""Known answers: inputs with the outputs that a version must give, checked with every version.

Only this catches a wrong plan and a runtime that computes wrongly without saying so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError
from fedge.params import BYTES_PER_PARAMETER

Array = npt.NDArray[Any]


def encode_self_test(inputs: Array, outputs: Array) -> bytes:
    """Return inputs then outputs as float32, row-major: the blob that a manifest names."""
    return b"".join(np.ascontiguousarray(part, "<f4").tobytes() for part in (inputs, outputs))


def decode_self_test(
    content: bytes, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """Return inputs and outputs, both with a leading batch dimension.

    Raises:
        ModelError: the length or the shapes do not fit.
    """
    shapes_fit = len(input_shape) >= 1 and input_shape[:1] == output_shape[:1]
    if not shapes_fit or min((*input_shape, *output_shape)) < 1:
        raise ModelError(f"self-test: inputs {input_shape} and outputs {output_shape}")
    num_inputs = math.prod(input_shape)
    expected = (num_inputs + math.prod(output_shape)) * BYTES_PER_PARAMETER
    if len(content) != expected:
        raise ModelError(f"self-test: {len(content)} bytes, its shapes need {expected}")
    flat = np.frombuffer(content, "<f4")
    return flat[:num_inputs].reshape(input_shape), flat[num_inputs:].reshape(output_shape)


def run_self_test(
    run: Callable[[Array], Array], inputs: Array, expected: Array, tolerance: float
) -> float:
    """Return the largest difference, relative to the largest expected output.

    Args:
        run: outputs ``[B, ...]`` of inputs ``[B, ...]``.
        inputs: ``[B, ...]``, at least one.
        expected: ``[B, ...]``.
        tolerance: largest difference allowed.

    Raises:
        ModelError: the answers differ by more, or are of another shape or not finite.
    """
    found = run(inputs)
    if found.shape != expected.shape:
        raise ModelError(f"self-test: expected outputs {expected.shape}, got {found.shape}")
    scale = max(float(np.abs(expected).max()), 1e-6)
    difference = float(np.abs(found.astype(np.float64) - expected).max()) / scale
    if not difference <= tolerance:  # not finite fails too
        raise ModelError(
            f"self-test: the model's answers differ by {difference:.2g} of the largest expected "
            f"output; {tolerance:.2g} is allowed"
        )
    return difference
