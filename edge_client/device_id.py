"""The random name by which the model registry tells this device from others."""

from __future__ import annotations

import secrets
from pathlib import Path

from fedge.durable import write_atomically
from fedge.errors import ConfigError

FILE = "device.id"
_NUM_CHARACTERS = 32


def load_device_id(folder: Path) -> str:
    """Return the name kept in a folder, made on first use; it says nothing about the device.

    Raises:
        ConfigError: the folder cannot be used.
    """
    path = folder / FILE
    try:
        found = path.read_bytes().decode("ascii", "replace").strip() if path.exists() else ""
        if len(found) == _NUM_CHARACTERS and found.isalnum():
            return found
        made = secrets.token_hex(_NUM_CHARACTERS // 2)
        write_atomically(path, made.encode())
        return made
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror}", key="state_dir") from error
