"""How a reply and what must be remembered with it lie in one file.

A SHA-256 of the header, the header (one line of JSON), the payload, the arrays of the memory as
raw little-endian numbers. The header names the size and SHA-256 of each part, so that the reply
can be read without the arrays, and nothing is read that was not written. No pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from aggregation.contracts import Memory
from fedge.messages import EncodedUpdate, RoundKey

_ARRAY = "__array__"
_DTYPES = ("<f4", "<f8", "<i4", "<i8", "<u4", "<u8", "|u1")
_SCALARS = (str, int, float, bool, type(None))

T = TypeVar("T")


def encode_stored_reply(key: RoundKey, update: EncodedUpdate, memory: Memory) -> bytes:
    """Return a reply and a memory (arrays, JSON scalars, nested dictionaries) as one file.

    Raises:
        TypeError: the memory holds something else.
    """
    arrays: list[npt.NDArray[Any]] = []
    fields: dict[str, Any] = asdict(update)
    payload: bytes = fields.pop("payload")
    tree = _pack(memory, arrays)
    header = {
        "run": key.run_name,
        "key": str(key),
        "update": fields,
        "payload": {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()},
        "memory": tree,
        "arrays": [_describe(array) for array in arrays],
    }
    line = json.dumps(header).encode()
    digest = hashlib.sha256(line).hexdigest().encode()
    return b"".join([digest, b"\n", line, b"\n", payload, *(array.data for array in arrays)])


def read_update(file: BinaryIO, key: RoundKey) -> EncodedUpdate | None:
    """Read the reply; None when it answers another round.

    Raises:
        ValueError: it is damaged.
    """

    def read(header: dict[str, Any]) -> EncodedUpdate | None:
        if header["key"] != str(key):
            return None
        payload = file.read(header["payload"]["size"])
        _check(payload, header["payload"]["sha256"], "the payload")
        return EncodedUpdate(**header["update"], payload=payload)

    return _damage_mapped(read, file)


def read_memory(file: BinaryIO, run_name: str) -> Memory:
    """Read the memory; empty when it is another run's. Its arrays can be written to.

    Raises:
        ValueError: it is damaged.
    """

    def read(header: dict[str, Any]) -> Memory:
        if header["run"] != run_name:
            return {}
        file.seek(header["payload"]["size"], 1)
        arrays = [_read_array(file, entry) for entry in header["arrays"]]
        memory: Memory = _unpack(header["memory"], arrays)
        return memory

    return _damage_mapped(read, file)


def _damage_mapped(read: Callable[[dict[str, Any]], T], file: BinaryIO) -> T:
    """Check the header and read on; whatever does not fit is a ValueError."""
    digest = file.readline().rstrip(b"\n")
    line = file.readline().rstrip(b"\n")
    _check(line, digest.decode("latin-1"), "the header")
    try:
        return read(json.loads(line))
    except (KeyError, TypeError) as error:
        raise ValueError(f"another release of fedge wrote it ({error!r:.80})") from error


def _check(content: bytes | memoryview, digest: str, what: str) -> None:
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{what} does not match its hash")


def _describe(array: npt.NDArray[Any]) -> dict[str, Any]:
    return {
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "sha256": hashlib.sha256(array.data).hexdigest(),
    }


def _read_array(file: BinaryIO, entry: dict[str, Any]) -> npt.NDArray[Any]:
    array = np.empty(entry["shape"], np.dtype(entry["dtype"]))
    flat = array.reshape(-1).view(np.uint8).data
    filled = file.readinto(flat)  # type: ignore[attr-defined]
    _check(flat[:filled], entry["sha256"], "an array")
    return array


def _pack(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        if little.dtype.str not in _DTYPES:
            raise TypeError(f"an array of {value.dtype} cannot be remembered")
        arrays.append(little.reshape(value.shape))
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): _pack(item, arrays) for key, item in value.items()}
    if not isinstance(value, _SCALARS):
        raise TypeError(f"a {type(value).__name__} cannot be remembered")
    return value


def _unpack(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if set(value) == {_ARRAY}:
        return arrays[value[_ARRAY]]
    return {key: _unpack(item, arrays) for key, item in value.items()}
