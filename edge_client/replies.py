"""The last reply of each run, kept so that the same question gets the same bytes and costs nothing.

A reply is stored before it is sent. A newer round of the same run replaces it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from fedge.durable import write_atomically
from fedge.errors import StoreError
from fedge.messages import EncodedUpdate, RoundKey

MAX_RUNS = 8

_log = logging.getLogger(__name__)


class ReplyStore(Protocol):
    """Keeps the newest reply of each run."""

    def get(self, key: RoundKey) -> EncodedUpdate | None:
        """Return the reply that was given to exactly this round, if it is still kept."""
        ...

    def put(self, key: RoundKey, update: EncodedUpdate) -> None:
        """Keep a reply; it is durable when this returns."""
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
        """Return the stored reply; a damaged file counts as none and is said so."""
        path = self._path(key)
        try:
            return decode_reply_bytes(path.read_bytes(), key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("stored reply %s is not used: %s", path, error)
            return None

    def put(self, key: RoundKey, update: EncodedUpdate) -> None:
        """Keep a reply; forget the oldest runs beyond eight."""
        try:
            write_atomically(self._path(key), encode_reply_bytes(key, update))
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

    def _path(self, key: RoundKey) -> Path:
        return self._folder / f"{hashlib.sha256(key.run_name.encode()).hexdigest()[:32]}.reply"


class MemoryReplyStore:
    """One reply that somebody else keeps: Flower's ``Context.state``, or a simulation.

    Args:
        content: what ``save`` was last given; empty for nothing.
        save: called with the reply's bytes whenever it changes.
    """

    def __init__(self, content: bytes = b"", save: Callable[[bytes], None] | None = None) -> None:
        self._content = content
        self._save = save

    def get(self, key: RoundKey) -> EncodedUpdate | None:
        """Return the stored reply if it answers this round."""
        try:
            return decode_reply_bytes(self._content, key) if self._content else None
        except ValueError:
            return None

    def put(self, key: RoundKey, update: EncodedUpdate) -> None:
        """Keep a reply in place of the last one."""
        self._content = encode_reply_bytes(key, update)
        if self._save is not None:
            self._save(self._content)


def encode_reply_bytes(key: RoundKey, update: EncodedUpdate) -> bytes:
    """Return a hash line, a header line and the payload."""
    fields: dict[str, Any] = asdict(update)
    payload: bytes = fields.pop("payload")
    body = json.dumps({"key": str(key), "update": fields}).encode() + b"\n" + payload
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode_reply_bytes(content: bytes, key: RoundKey) -> EncodedUpdate | None:
    """Read what `encode_reply_bytes` wrote; None when it answers another round.

    Raises:
        ValueError: it is damaged.
    """
    digest, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("its content does not match its hash")
    header, _, payload = body.partition(b"\n")
    data = json.loads(header)
    return EncodedUpdate(**data["update"], payload=payload) if data["key"] == str(key) else None
