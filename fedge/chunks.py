"""Large contents on a stream: cut into chunks, and joined without trusting the sender."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedge.errors import TransportError

CHUNK_BYTES = 1024 * 1024


def iter_chunks(content: bytes, size_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the content in pieces of at most ``size_bytes``; one empty piece if it is empty."""
    view = memoryview(content)
    for start in range(0, max(1, len(view)), size_bytes):
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
    pieces = []
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > size_bytes:
            raise TransportError(f"{what}: more bytes came than the {size_bytes} announced")
        pieces.append(chunk)
    if num_bytes < size_bytes:
        raise TransportError(f"{what}: {num_bytes} of {size_bytes} bytes came")
    return b"".join(pieces)
