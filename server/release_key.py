"""The Ed25519 key that signs published versions, and its public half for the devices."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedge.durable import sync_folder, write_atomically
from fedge.errors import ConfigError

KEY = "registry.release_key"
_READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def load_or_create_release_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key of a PEM file; make it (mode 0600) if there is none.

    The public half is kept beside it with the suffix ``.pub``, for the devices to pin.

    Raises:
        ConfigError: the file is not such a key, others may read it, or it cannot be written.
    """
    try:
        if not path.exists():
            _create(path)
        key = _load(path)
        _write_public_half(key, path)
        return key
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror}", key=KEY) from error


def public_path(path: Path) -> Path:
    """Return where the public half of a private key file lies."""
    return path.with_name(path.name + ".pub")


def _create(path: Path) -> None:
    """Write a new key; of two processes that do so at once, both end up with the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)
    except FileExistsError:
        pass  # another process was first: its key counts
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def _load(path: Path) -> Ed25519PrivateKey:
    if path.stat().st_mode & _READABLE_BY_OTHERS:
        raise ConfigError(
            f"{path} can be read by other users; run: chmod 600 {path} "
            "(and replace the key if someone may have copied it)",
            key=KEY,
        )
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not an unencrypted private key in PEM; move it away to have a new one "
            "made (devices must then pin the new public half)",
            key=KEY,
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds a {type(key).__name__}, not an Ed25519 key", key=KEY)
    return key


def _write_public_half(key: Ed25519PrivateKey, path: Path) -> None:
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    place = public_path(path)
    if not place.exists() or place.read_bytes() != pem:
        write_atomically(place, pem)
