"""A round's steps, kept in a file, so that a killed training process goes on after the last one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_client.slot_file import SlotFile
from fedge.training.snapshot import Snapshot

_log = logging.getLogger(__name__)


class RoundSteps:
    """A `Keeper` of one round's training.

    Args:
        path: of the file; a file of another round is replaced.
        key: `round_digest` of what is trained.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._file = SlotFile(path, key)

    def recall(self) -> Snapshot | None:
        """Return the newest snapshot that is whole; None before the first step."""
        content = self._file.read()
        if content is None:
            return None
        try:
            return Snapshot.from_bytes(content)
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("the kept steps of this round cannot be read: %r", error)
            return None

    def keep(self, snapshot: Snapshot) -> None:
        """Keep a snapshot in place of the one before."""
        self._file.write(snapshot.to_bytes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def round_digest(header: Mapping[str, Any], payload: bytes | bytearray) -> bytes:
    """Return what tells one training from every other.

    Args:
        header: JSON values: the round's key, its hyperparameters and plan.
        payload: what it starts from, corrections included.
    """
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(payload)
    return digest.digest()
