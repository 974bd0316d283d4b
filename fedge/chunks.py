"""Large contents on a stream: cut into chunks, and joined without trusting the sender."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from fedge.errors import TransportError
from fedge.params import BYTES_PER_PARAMETER, Vector

CHUNK_BYTES = 1024 * 1024


def iter_chunks(content: bytes | Vector, size_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the content in pieces of at most ``size_bytes``; one empty piece if it is empty."""
    view = memoryview(content if isinstance(content, bytes) else content.data)
    if view.nbytes == 0:
        yield b""
        return
    view = view.cast("B")
    for start in range(0, len(view), size_bytes):
        yield bytes(view[start : start + size_bytes])


def join_chunks(
    chunks: Iterable[bytes], *, size_bytes: int, limit_bytes: int, what: str = "content"
) -> bytes:
    """Return the pieces as one, holding no more than was announced.

    Args:
        chunks: consumed as they come, no further than needed to see that there are too many.
        size_bytes: announced length.
        limit_bytes: longest length accepted; checked before the first piece is taken.
        what: name of the content for the error text.

    Raises:
        TransportError: too long, or the pieces are not as long as announced.
    """
    if size_bytes > limit_bytes:
        raise TransportError(f"{what}: {size_bytes} bytes announced, at most {limit_bytes} allowed")
    return b"".join(_checked(chunks, size_bytes, what))


def join_vector(
    chunks: Iterable[bytes], *, size_bytes: int, what: str = "weights"
) -> tuple[Vector, str]:
    """Return the pieces as a vector, and its digest, computed while they come.

    Args:
        chunks: consumed as they come, no further than needed to see that there are too many.
        size_bytes: announced length, which the caller has checked.
        what: name of the vector for the error text.

    Raises:
        TransportError: the pieces are not as long as announced.
    """
    vector: Vector = np.empty(size_bytes // BYTES_PER_PARAMETER, np.float32)
    view = vector.view(np.uint8)
    digest = hashlib.sha256()
    start = 0
    for chunk in _checked(chunks, len(view), what):
        view[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
        digest.update(chunk)
        start += len(chunk)
    return vector, digest.hexdigest()


def _checked(chunks: Iterable[bytes], size_bytes: int, what: str) -> Iterator[bytes]:
    """Yield the pieces, and raise once they are too many or have ended too early."""
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > size_bytes:
            raise TransportError(f"{what}: more bytes came than the {size_bytes} announced")
        yield chunk
    if num_bytes < size_bytes:
        raise TransportError(f"{what}: {num_bytes} of {size_bytes} bytes came")
