"""A folder that one process at a time writes to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedge.errors import ConfigError

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path, owner: str, *, key: str) -> Iterator[None]:
    """Keep every other process out of a folder, which is made if missing.

    Args:
        owner: what else may be in there, for the error text.
        key: setting that names the folder.

    Raises:
        ConfigError: it is in use, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"cannot use {folder}: {error.strerror}", key=key) from error
    with os.fdopen(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{folder} is used by another {owner}: end it or choose another folder", key=key
            ) from error
        yield
