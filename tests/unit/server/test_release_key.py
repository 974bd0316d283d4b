"""The release key: made once, private, and refused where it is not what it should be."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from fedge.errors import ConfigError
from fedge.manifest import sign
from server.release_key import load_or_create_release_key, public_path


def test_a_missing_key_is_made_private_and_its_public_half_verifies(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "release.key"
    key = load_or_create_release_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = load_pem_public_key(public_path(path).read_bytes())
    public.verify(sign(b"content", key), b"content")  # type: ignore[union-attr,call-arg]
    assert sorted(file.name for file in path.parent.iterdir()) == ["release.key", "release.key.pub"]


def test_an_existing_key_is_loaded_unchanged_and_a_lost_public_half_comes_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "release.key"
    first = load_or_create_release_key(path)
    public = public_path(path).read_bytes()
    public_path(path).unlink()
    second = load_or_create_release_key(path)
    assert first.private_bytes_raw() == second.private_bytes_raw()
    assert public_path(path).read_bytes() == public


def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    load_or_create_release_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"registry\.release_key: .*chmod 600"):
        load_or_create_release_key(path)


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    path.write_bytes(b"hello")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not an unencrypted private key"):
        load_or_create_release_key(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "release.key"
    pem = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    path.write_bytes(pem)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        load_or_create_release_key(path)


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"registry\.release_key: cannot use"):
        load_or_create_release_key(tmp_path / "file" / "release.key")
