"""The one folder that holds a device's state, used by one daemon at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

from edge_client.state_version import LOCK_FILE, MIGRATIONS, Migrations, bring_up_to_date
from fedge.durable import remove_cut_off
from fedge.errors import ConfigError

_log = logging.getLogger(__name__)


class StateFolder:
    """Holds the folder's lock between enter and exit; a killed daemon's lock is free at once.

    Args:
        path: made if it is missing.
        migrations: lead a folder of an older release to this one's layout, on entering.

    Raises:
        ConfigError: from entering, when the folder cannot be used, another daemon uses it, or a
            newer release of fedge does.
    """

    def __init__(self, path: Path, migrations: Migrations = MIGRATIONS) -> None:
        self.path = path
        self._migrations = migrations
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

    @property
    def readings_socket(self) -> Path:
        """Unix socket that readings come in on."""
        return self.path / "readings.sock"

    def __enter__(self) -> StateFolder:
        descriptor = self._open()
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
        with contextlib.suppress(OSError):  # the number helps a person; the lock needs none
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        with contextlib.suppress(OSError):  # it takes room, no more
            remove_cut_off(self.path)
        try:
            bring_up_to_date(self.path, self._migrations)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor
        return self

    def _open(self) -> int:
        """Return the lock file, opened; of a folder that became read-only, to read it.

        A card that wears out turns read-only, and the model on it can still answer.
        """
        path = self.path / LOCK_FILE
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                _log.error(
                    "%s cannot be written (%s): this device predicts with what is there, and "
                    "keeps and learns nothing",
                    self.path,
                    error.strerror,
                )
                return descriptor
            raise ConfigError(
                f"cannot use {self.path}: {error.strerror}", key="state_dir"
            ) from error

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
