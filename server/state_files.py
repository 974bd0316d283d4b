"""Nested state of optimisers and aggregators as JSON and one array file, without pickle."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from fedge.errors import CheckpointError

_ARRAY = "__array__"
_SCALARS = (str, int, float, bool, type(None))


def pack_state(state: Any) -> tuple[Any, bytes]:
    """Return the state with references in place of arrays, and the arrays as .npz bytes.

    Raises:
        CheckpointError: it holds something other than arrays and JSON values.
    """
    arrays: list[npt.NDArray[Any]] = []
    tree = _pack(state, arrays, "state")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, array in enumerate(arrays):
            with archive.open(f"{index}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return tree, buffer.getvalue()


def unpack_state(tree: Any, arrays: bytes) -> Any:
    """Return what `pack_state` was given.

    Raises:
        ValueError, KeyError: these are not from `pack_state`.
    """
    try:
        with np.load(io.BytesIO(arrays), allow_pickle=False) as found:
            return _unpack(tree, found)
    except zipfile.BadZipFile as error:
        raise ValueError(f"not an array file: {error}") from error


def _pack(value: Any, arrays: list[npt.NDArray[Any]], where: str) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise CheckpointError(f"{where} is an array of Python objects; use numbers")
        arrays.append(value)
        return {_ARRAY: str(len(arrays) - 1)}
    if isinstance(value, np.generic):
        return _pack(value.item(), arrays, where)
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == _ARRAY:
                raise CheckpointError(f"{where} has the key {key!r}; keys must be text")
        return {key: _pack(item, arrays, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item, arrays, f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, _SCALARS):
        raise CheckpointError(f"{where} is a {type(value).__name__}; only arrays and JSON values")
    return value


def _unpack(value: Any, arrays: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _unpack(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    return value
