"""JSON from strangers: bounded, strict, and never trusted about its own structure."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fedge.errors import PayloadRejected

_TYPES: dict[str, frozenset[type]] = {
    "float32": frozenset((int, float)),
    "float64": frozenset((int, float)),
    "int32": frozenset((int,)),
    "int64": frozenset((int,)),
}

_REAL = ("float32", "float64")


def read_object(payload: bytes) -> dict[str, Any]:
    """Return the JSON object of a payload whose size was checked.

    Raises:
        PayloadRejected: it is not valid UTF-8, not JSON, nested too deeply, has NaN or Infinity,
            or is not an object.
    """
    try:
        text = payload.decode()
    except UnicodeDecodeError as error:
        raise PayloadRejected("encoding", "is not valid UTF-8") from error
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise PayloadRejected("nesting", "is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits too
        raise PayloadRejected("json", f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise PayloadRejected("type", "must be a JSON object")
    return found


def read_array(value: Any, shape: tuple[int, ...], dtype: str, what: str) -> npt.NDArray[Any]:
    """Return nested lists as an array of exactly this shape.

    Types and lengths are looked at before an array is made: NumPy by itself would take text for
    numbers and, of one long text, make a table of gigabytes.

    Raises:
        PayloadRejected: the shape, a type or a number is not as declared.
    """
    flat: list[Any] = [value]
    for size in shape:
        if any(type(part) is not list or len(part) != size for part in flat):
            raise PayloadRejected("shape", f"{what} must have shape {list(shape)}")
        flat = [item for part in flat for item in part]
    kinds = set(map(type, flat))
    if list in kinds:
        raise PayloadRejected("shape", f"{what} must have shape {list(shape)}")
    if not kinds <= _TYPES[dtype]:
        raise PayloadRejected("type", f"{what} must be numbers of {dtype}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, np.float64 if dtype in _REAL else np.int64).astype(dtype)
    except OverflowError:
        raise PayloadRejected("number", f"{what} has a number beyond {dtype}") from None
    if not np.isfinite(array).all() or (dtype == "int32" and array.tolist() != flat):
        raise PayloadRejected("number", f"{what} has a number beyond {dtype}")
    return array.reshape(shape)


def _refuse_constant(name: str) -> NoReturn:
    raise PayloadRejected("number", f"has {name}")
