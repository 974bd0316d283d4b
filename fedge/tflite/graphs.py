"""The graphs of a TFLite file: how to leave out all but the first, and take them in again.

A file is a flatbuffer: tables with a list of field offsets, and vectors that begin with their
length. A shorter length leaves out a vector's last entries; no other byte changes.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from fedge.errors import ModelError

# Fields of the schema's table Model.
_SUBGRAPHS = 2
_SIGNATURES = 7
_FIRST_FIELD = 4  # bytes of a vtable before its field offsets
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Cut:
    """Where a file says how many graphs and signatures it has, and how many those are.

    Attributes:
        graphs, signatures: (offset in bytes, length).
    """

    graphs: tuple[int, int]
    signatures: tuple[int, int]

    def shorten(self, model: memoryview | bytearray) -> None:
        """Leave the first graph alone in a model, and no signature."""
        _LENGTH.pack_into(model, self.graphs[0], 1)
        _LENGTH.pack_into(model, self.signatures[0], 0)

    def restore(self, shortened: bytes) -> bytes:
        """Return a model with all its graphs again."""
        whole = io.BytesIO(shortened)
        with whole.getbuffer() as content:
            for offset, length in (self.graphs, self.signatures):
                _LENGTH.pack_into(content, offset, length)
        return whole.getvalue()


def cut_of(model: bytes) -> Cut | None:
    """Return how a model is cut down to its first graph; None where that must not be.

    Graphs that no signature names may be called by the first one.

    Raises:
        ModelError: the bytes are no TFLite model.
    """
    try:
        graphs, signatures = _vector(model, _SUBGRAPHS), _vector(model, _SIGNATURES)
    except (struct.error, OverflowError) as error:
        raise ModelError(f"template: not a TFLite model ({error})") from error
    if graphs is None or signatures is None or not 1 < graphs[1] == signatures[1]:
        return None
    return Cut(graphs, signatures)


def _vector(model: bytes, field: int) -> tuple[int, int] | None:
    """Return offset and length of a vector of the root table, or None if the file has none."""
    (root,) = struct.unpack_from("<I", model, 0)
    (to_vtable,) = struct.unpack_from("<i", model, root)
    vtable = root - to_vtable
    (size,) = struct.unpack_from("<H", model, vtable)
    place = _FIRST_FIELD + 2 * field
    offset = struct.unpack_from("<H", model, vtable + place)[0] if place < size else 0
    if not offset:
        return None
    start = root + offset
    start += _LENGTH.unpack_from(model, start)[0]
    return start, _LENGTH.unpack_from(model, start)[0]
