"""The public half of the release key, which this device pins."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedge.errors import ConfigError


def load_release_key(path: Path | None) -> Ed25519PublicKey | None:
    """Return the pinned release key, None when none is configured.

    Raises:
        ConfigError: the file is not an Ed25519 public key in PEM.
    """
    if path is None:
        return None
    name = "registry.release_public_key"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key=name) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a public key in PEM", key=name) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 key: take the server's .pub file", key=name)
    return key
