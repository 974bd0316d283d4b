"""Where the constants of a TFLite file stand. Needs the converter's environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_DATA_FIELD = 4  # vtable slot of Buffer.data
_FLOAT32 = 0  # schema's TensorType


@dataclass(frozen=True)
class Constant:
    """One non-empty buffer of a file.

    Attributes:
        name: of the first tensor that reads it.
        is_float32: every tensor that reads it is float32.
    """

    offset_bytes: int
    size_bytes: int
    name: str
    is_float32: bool


def list_constants(model: bytes) -> list[Constant]:
    """Return a file's non-empty buffers in file order."""
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(model, 0)
    readers = _readers(root)
    found = []
    for index in range(root.BuffersLength()):
        place = _place(root.Buffers(index))
        if place is not None:
            tensors = readers.get(index, [])
            name = tensors[0][1] if tensors else f"buffer {index}"
            is_float32 = bool(tensors) and all(kind == _FLOAT32 for kind, _ in tensors)
            found.append(Constant(*place, name, is_float32))
    return sorted(found, key=lambda constant: constant.offset_bytes)


def _readers(root: Any) -> dict[int, list[tuple[int, str]]]:
    """Return (type, name) of the tensors that read each buffer, by buffer index."""
    readers: dict[int, list[tuple[int, str]]] = {}
    for number in range(root.SubgraphsLength()):
        graph = root.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            entry = (int(tensor.Type()), tensor.Name().decode())
            readers.setdefault(int(tensor.Buffer()), []).append(entry)
    return readers


def _place(buffer: Any) -> tuple[int, int] | None:
    """Return byte offset and size of a buffer's data, or None if it has none."""
    if buffer.Offset() > 1:  # data behind the flatbuffer, of files beyond 2 GB
        return int(buffer.Offset()), int(buffer.Size())
    field = buffer._tab.Offset(_DATA_FIELD)
    if not field or not buffer.DataLength():
        return None
    return int(buffer._tab.Vector(field)), int(buffer.DataLength())
