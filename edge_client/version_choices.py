"""What a person or the device itself decided about versions: one pinned, some refused.

One small file beside the pointer, replaced as a whole. The daemon and ``fedge-edge model`` both
write it, one at a time; the daemon looks at it now and then and needs no restart.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedge.durable import write_atomically
from fedge.errors import ModelError

log = logging.getLogger(__name__)

FILE = "choices.json"
_LOCK = ".choices.lock"
_MAX_REFUSED = 64  # the oldest are forgotten; by then their rounds are too old to come back


@dataclass(frozen=True)
class Choices:
    """Versions by id (SHA-256 of the signed manifest).

    Attributes:
        pinned: the one version to serve and to stay with; empty takes each new one.
        refused: versions that must not be served or installed (again), with the reason.
    """

    pinned: str = ""
    refused: dict[str, str] = field(default_factory=dict)


class ChoicesFile:
    """Reads and changes the choices in one folder, which must exist."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lock = folder / _LOCK

    def read(self) -> Choices:
        """Return the choices; a missing or damaged file holds none, the second is logged."""
        try:
            data: dict[str, Any] = json.loads(self._path.read_bytes())
            refused = {str(key): str(reason) for key, reason in data["refused"].items()}
            return Choices(str(data["pinned"]), refused)
        except FileNotFoundError:
            return Choices()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is passed over, no version is pinned or refused: %s", self._path, error)
            return Choices()

    def stamp(self) -> tuple[int, int]:
        """Return what changes when the file does."""
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def refuse(self, version: str, reason: str) -> None:
        """Never serve a version again; a pin on it ends."""
        with self._changing() as before:
            refused = {**before.refused, version: reason}
            for oldest in list(refused)[:-_MAX_REFUSED]:
                del refused[oldest]
            pinned = "" if before.pinned == version else before.pinned
            self._write(Choices(pinned, refused))

    def allow(self, version: str) -> None:
        """Take a refusal back."""
        with self._changing() as before:
            kept = {key: reason for key, reason in before.refused.items() if key != version}
            self._write(replace(before, refused=kept))

    def pin(self, version: str) -> None:
        """Serve this version until it is unpinned (an empty id); a refusal of it ends."""
        with self._changing() as before:
            kept = {key: reason for key, reason in before.refused.items() if key != version}
            self._write(Choices(version, kept))

    @contextmanager
    def _changing(self) -> Iterator[Choices]:
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield self.read()
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ModelError(f"{self._path} cannot be written: {error.strerror}") from error

    def _write(self, choices: Choices) -> None:
        content = {
            "pinned": choices.pinned,
            "refused": choices.refused,
            "written_at": time.time(),
        }
        write_atomically(self._path, json.dumps(content, indent=1).encode())
