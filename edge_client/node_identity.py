"""What makes a device the same node after a restart: its key, and the id of an open session."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fedge.durable import sync_folder, write_atomically, write_synced
from fedge.errors import ConfigError
from fedge.flower_internals import NodeIdentity

KEY_FILE = "node.key"
PUBLIC_KEY_FILE = "node.key.pub"
SESSION_FILE = "node.session"


def load_identity(folder: Path) -> NodeIdentity:
    """Return the identity kept in a folder, made on first use; only its owner can read the key.

    Raises:
        ConfigError: the key file cannot be read or written, or holds no key.
    """
    path = folder / KEY_FILE
    try:
        if path.exists():
            return NodeIdentity.from_pem(path.read_bytes())
        identity = NodeIdentity.generate()
        beside = path.with_suffix(".tmp")
        beside.unlink(missing_ok=True)
        beside.touch(mode=0o600)
        write_synced(beside, identity.to_pem())
        write_atomically(folder / PUBLIC_KEY_FILE, identity.public_pem)
        os.replace(beside, path)
        sync_folder(folder)
        return identity
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror}", key="state_dir") from error
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error}; restore it, or remove it to become another node", key="state_dir"
        ) from error


class SessionFile:
    """Remembers the node id while a session is open: a crash leaves it, a goodbye removes it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SESSION_FILE

    def read(self) -> int | None:
        """Return the id of a session that was never closed, or None."""
        try:
            return int(self._path.read_text())
        except (OSError, ValueError):
            return None

    def write(self, node_id: int) -> None:
        """Note an open session; a full disk costs the note, not the session."""
        with contextlib.suppress(OSError):
            write_atomically(self._path, str(node_id).encode())

    def clear(self) -> None:
        """Note that it was closed."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
