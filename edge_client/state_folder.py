"""The one folder that holds a device's state, used by one daemon at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedge.errors import ConfigError

LOCK_FILE = "daemon.lock"


class StateFolder:
    """Holds the folder's lock between enter and exit; a killed daemon's lock is free at once.

    Raises:
        ConfigError: from entering, when the folder cannot be used or another daemon uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.path / "ledger.db"

    @property
    def models(self) -> Path:
        """Model versions."""
        return self.path / "models"

    @property
    def replies(self) -> Path:
        """Last replies."""
        return self.path / "replies"

    @property
    def outbox(self) -> Path:
        """Predictions that wait for the broker."""
        return self.path / "outbox.db"

    @property
    def rounds(self) -> Path:
        """One JSON line a trained round."""
        return self.path / "rounds.jsonl"

    def __enter__(self) -> StateFolder:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.path / LOCK_FILE
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot use {self.path}: {error.strerror}", key="state_dir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise ConfigError(
                f"{self.path} is in use by another daemon (process {owner}): end it, or give this "
                "one a folder of its own",
                key="state_dir",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._lock = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
