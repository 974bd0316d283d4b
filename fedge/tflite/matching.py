"""From two files converted with sentinel weights to the copies of a plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedge.errors import ModelError
from fedge.params import BYTES_PER_PARAMETER, Layout
from fedge.tflite.buffers import Constant
from fedge.tflite.copies import Copy
from fedge.tflite.sentinels import Index, Sentinels
from fedge.tflite.strides import find_loop

Bytes = npt.NDArray[np.uint8]
_FOLDED = (
    "the converter computed it from several weights, so it cannot be patched: put a "
    "nonlinearity between two linear steps, or take layers that do not fold (GroupNorm, no "
    "LayerNorm right before a Linear, no constant factor on a weight)"
)


def find_copies(
    layout: Layout,
    files: tuple[bytes, bytes],
    constants: Sequence[Constant],
    sentinels: tuple[Sentinels, Sentinels],
) -> tuple[Copy, ...]:
    """Return the copies that turn either file into the other.

    Args:
        layout: of the vector whose scalars the sentinels number.
        files: the same model converted with each of the sentinels.
        constants: where the constants stand, the same in both files.
        sentinels: what the files were converted with.

    Raises:
        ModelError: something that depends on the weights is not a plain copy of them.
    """
    first, second = (np.frombuffer(content, np.uint8) for content in files)
    differs = first != second
    copies: list[Copy] = []
    for constant in constants:
        here = slice(constant.offset_bytes, constant.offset_bytes + constant.size_bytes)
        if differs[here].any():
            scalars = _find_scalars(constant, (first[here], second[here]), sentinels)
            copies += _copies_of_constant(layout, constant, scalars)
        differs[here] = False
    if differs.any():
        raise ModelError("the converted graph itself depends on the weights: " + _FOLDED)
    return tuple(copies)


def find_unused(layout: Layout, copies: Sequence[Copy]) -> tuple[str, ...]:
    """Return the tensors that no copy reads."""
    copied = {copy.parameter for copy in copies}
    return tuple(name for name in layout.names if name not in copied)


def _find_scalars(
    constant: Constant, contents: tuple[Bytes, Bytes], sentinels: tuple[Sentinels, Sentinels]
) -> Index:
    """Return which scalar each float of a constant is, -1 where it does not depend on weights."""
    if not constant.is_float32 or constant.size_bytes % BYTES_PER_PARAMETER:
        raise ModelError(f"constant {constant.name} depends on weights and is not float32")
    values = [content.copy().view(np.float32) for content in contents]
    found = [sentinel.find(value) for sentinel, value in zip(sentinels, values, strict=True)]
    same = (found[0] >= 0) & (found[0] == found[1])
    fixed = values[0].view(np.uint32) == values[1].view(np.uint32)
    num_bad = int(np.count_nonzero(~(same | fixed)))
    if num_bad:
        raise ModelError(
            f"constant {constant.name:.80}: {num_bad} of {len(same)} values are not weights: "
            + _FOLDED
        )
    return np.where(same, found[0], -1)


def _copies_of_constant(layout: Layout, constant: Constant, scalars: Index) -> list[Copy]:
    """Write a constant as one strided copy a parameter."""
    parameters = np.searchsorted(layout.offsets, scalars, "right") - 1
    parameters[scalars < 0] = -1
    copies = []
    for number in np.unique(parameters[parameters >= 0]):
        places = np.flatnonzero(parameters == number)
        name = layout.names[number]
        loop = find_loop(places, scalars[places] - layout.offsets[number])
        if loop is None:
            raise ModelError(
                f"constant {constant.name:.80}: {name} stands there in no regular order"
            )
        offset_bytes = constant.offset_bytes + loop.file_start * BYTES_PER_PARAMETER
        copies.append(
            Copy(
                parameter=name,
                offset_bytes=offset_bytes,
                dims=loop.dims,
                file_strides=loop.file_strides,
                source_start=loop.source_start,
                source_strides=loop.source_strides,
            )
        )
    return copies
