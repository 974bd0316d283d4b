"""The random name by which the model registry tells this device from others."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from fedge.durable import write_atomically

_log = logging.getLogger(__name__)

FILE = "device.id"
_NUM_CHARACTERS = 32


def load_device_id(folder: Path) -> str:
    """Return the name kept in a folder, made on first use; it says nothing about the device.

    Where it cannot be read or kept another one serves until the next start.
    """
    path, made = folder / FILE, secrets.token_hex(_NUM_CHARACTERS // 2)
    try:
        found = path.read_bytes().decode("ascii", "replace").strip() if path.exists() else ""
        if len(found) == _NUM_CHARACTERS and found.isalnum():
            return found
        write_atomically(path, made.encode())
    except OSError as error:
        _log.warning(
            "%s cannot be used (%s): this device has another name at the registry until it can",
            path,
            error.strerror,
        )
    return made
