"""The message a device is at work on, kept so that a crash does not leave the server waiting."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flwr.app import Message

from fedge.durable import write_atomically
from fedge.errors import TransportError
from fedge.flower_internals import pack_message, unpack_message

PENDING_FILE = "node.pending"


class PendingMessage:
    """Remembers one message, without its content, from its arrival until it is answered."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / PENDING_FILE

    def note(self, message: Message) -> None:
        """Note a message that work begins on; a full disk costs the note, not the work."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, pack_message(message))

    def clear(self) -> None:
        """Note that it was answered, or that nobody waits for it."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def take(self, node_id: int) -> Message | None:
        """Return the message that this node left unanswered when it was cut off, and forget it."""
        found = None
        with contextlib.suppress(OSError, TransportError):
            found = unpack_message(self._path.read_bytes())
        self.clear()
        return found if found is not None and found.metadata.dst_node_id == node_id else None
