"""The last reply of each run, kept so that the same question gets the same bytes and costs nothing.

A reply is stored before it is sent, in one step with what the next round must remember of it
(error feedback, SCAFFOLD's control, personal layers). A newer round of the same run replaces both.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from aggregation.contracts import Memory
from edge_client.stored_reply import encode_stored_reply, read_memory, read_update
from fedge.durable import write_atomically
from fedge.errors import StoreError
from fedge.messages import EncodedUpdate, RoundKey

MAX_RUNS = 8

_log = logging.getLogger(__name__)


class ReplyStore(Protocol):
    """Keeps the newest reply of each run and the memory that belongs to it."""

    def get(self, key: RoundKey) -> EncodedUpdate | None:
        """Return the reply that was given to exactly this round, if it is still kept."""
        ...

    def state(self, run_name: str) -> Memory:
        """Return what was put with the run's newest reply; empty where there is none."""
        ...

    def put(self, key: RoundKey, update: EncodedUpdate, state: Memory) -> None:
        """Keep a reply and a memory as one step; both are durable when this returns."""
        ...


class FileReplyStore:
    """One hashed file a run, replaced atomically.

    Raises:
        StoreError: the folder cannot be made; or, from `put`, the disk does not take the reply,
            and then it must not be sent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error.strerror}") from error

    def get(self, key: RoundKey) -> EncodedUpdate | None:
        """Return the stored reply; a damaged one counts as none and is said so."""
        path = self._path(key.run_name)
        try:
            with path.open("rb") as file:
                return read_update(file, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("stored reply %s is not used: %s", path, error)
            return None

    def state(self, run_name: str) -> Memory:
        """Return the run's memory; a damaged one counts as none and is said so."""
        path = self._path(run_name)
        try:
            with path.open("rb") as file:
                return read_memory(file, run_name)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("what %s remembers is not used, it begins anew: %s", path, error)
            return {}

    def put(self, key: RoundKey, update: EncodedUpdate, state: Memory) -> None:
        """Keep a reply and a memory; forget the oldest runs beyond eight."""
        try:
            write_atomically(self._path(key.run_name), encode_stored_reply(key, update, state))
            newest_first = sorted(
                self._folder.glob("*.reply"), key=lambda path: path.stat().st_mtime, reverse=True
            )
            for path in newest_first[MAX_RUNS:]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"the reply cannot be kept in {self._folder} ({error.strerror}), so it is not "
                "sent: free the disk"
            ) from error

    def _path(self, run_name: str) -> Path:
        return self._folder / f"{hashlib.sha256(run_name.encode()).hexdigest()[:32]}.reply"


class MemoryReplyStore:
    """One reply that somebody else keeps: Flower's ``Context.state``, or a simulation.

    Args:
        content: what ``save`` was last given; empty for nothing.
        save: called with the bytes of reply and memory whenever they change.
    """

    def __init__(self, content: bytes = b"", save: Callable[[bytes], None] | None = None) -> None:
        self._content = content
        self._save = save

    def get(self, key: RoundKey) -> EncodedUpdate | None:
        """Return the stored reply if it answers this round."""
        try:
            return read_update(io.BytesIO(self._content), key) if self._content else None
        except ValueError as error:
            _log.warning("the stored reply is not used: %s", error)
            return None

    def state(self, run_name: str) -> Memory:
        """Return what was put with the last reply, if it is of this run."""
        try:
            return read_memory(io.BytesIO(self._content), run_name) if self._content else {}
        except ValueError as error:
            _log.warning("what was remembered is not used, it begins anew: %s", error)
            return {}

    def put(self, key: RoundKey, update: EncodedUpdate, state: Memory) -> None:
        """Keep a reply and a memory in place of the last ones."""
        self._content = encode_stored_reply(key, update, state)
        if self._save is not None:
            self._save(self._content)
