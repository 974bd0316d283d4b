"""Files of a device's model versions: content-hashed blobs and signed manifests, nothing else.

::

    blobs/<sha-256>            template, plan, weights, known answers
    versions/<number>.version  SHA-256 of what follows, signature, manifest
    current                    name of the version to serve

Numbers only grow. Every read is checked against a hash, every write is atomic and synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedge.durable import sync_folder, write_atomically
from fedge.errors import ModelError
from fedge.manifest import Blob

logger = logging.getLogger(__name__)

_HASH_BYTES = 32
_SIGNATURE_BYTES = 64  # Ed25519
_SUFFIX = ".version"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_POINTER = "current"
_Stamp = tuple[int, int, int]  # inode, size, time of the last write in ns


@dataclass(frozen=True)
class SignedManifest:
    """A manifest's canonical bytes and the release key's signature of exactly these."""

    manifest: bytes
    signature: bytes


class VersionFiles:
    """Reads and writes below one folder; knows hashes, not models.

    Raises:
        ModelError: the folder cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._versions = root / "versions"
        self._whole: dict[str, _Stamp] = {}
        try:
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._versions.mkdir(exist_ok=True)
            sync_folder(root.parent)
        except OSError as error:
            raise ModelError(f"{root}: model versions cannot be kept there: {error}") from error

    def read_blob(self, what: str, blob: Blob) -> bytes:
        """Return a blob's bytes.

        Raises:
            ModelError: it is missing or damaged.
        """
        path = self._blob_path(blob.digest)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{what}: {path} cannot be read: {error.strerror}") from error
        blob.check(content, f"{what} ({path})")
        self._note_whole(blob.digest)
        return content

    def has_blob(self, digest: str) -> bool:
        """Tell whether a blob is here and whole; a file that nobody touched is hashed once."""
        try:
            path = self._blob_path(digest)
            if self._whole.get(digest) == _stamp(path):
                return True
            content = path.read_bytes()
        except (OSError, ModelError):
            return False
        if Blob.of(content).digest != digest:
            return False
        self._note_whole(digest)
        return True

    def write_blob(self, blob: Blob, content: bytes) -> None:
        """Keep a blob that was checked, unless it is here and whole."""
        if not self.has_blob(blob.digest):
            self._write(self._blob_path(blob.digest), content)
            self._note_whole(blob.digest)

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, newest first, damaged ones included."""
        stems = [path.stem for path in self._versions.glob(f"*{_SUFFIX}")]
        return sorted((int(stem) for stem in stems if stem.isdecimal()), reverse=True)

    def read_version(self, number: int) -> SignedManifest:
        """Return a version's manifest and signature, as they were written.

        Raises:
            ModelError: it is missing or damaged.
        """
        path = self._version_path(number)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        body = content[_HASH_BYTES:]
        if hashlib.sha256(body).digest() != content[:_HASH_BYTES]:
            raise ModelError(f"{path} is damaged: its content does not match its hash")
        return SignedManifest(body[_SIGNATURE_BYTES:], body[:_SIGNATURE_BYTES])

    def write_version(self, signed: SignedManifest) -> int:
        """Keep one more version and return its number."""
        number = max(self.numbers(), default=0) + 1
        body = signed.signature + signed.manifest
        self._write(self._version_path(number), hashlib.sha256(body).digest() + body)
        return number

    def pointed(self) -> int | None:
        """Return the number that the pointer names, None if it names none."""
        try:
            text = (self._root / _POINTER).read_bytes().strip()
        except OSError:
            return None
        return int(text) if text.isdigit() else None

    def point_to(self, number: int) -> None:
        """Make a version the one to serve, as one step."""
        self._write(self._root / _POINTER, f"{number}\n".encode())

    def prune(self, numbers: Iterable[int], digests: Iterable[str]) -> None:
        """Delete every version and blob but these; what cannot be deleted stays, and is logged."""
        needed = set(digests)
        self._whole = {digest: stamp for digest, stamp in self._whole.items() if digest in needed}
        keep_versions = {self._version_path(number) for number in numbers}
        keep_blobs = {self._blob_path(digest) for digest in needed}
        for folder, keep in ((self._versions, keep_versions), (self._blobs, keep_blobs)):
            # Versions before blobs, synced between: a crash leaves no version without its blobs.
            try:
                for path in folder.iterdir():
                    if path not in keep:
                        path.unlink()
                sync_folder(folder)
            except OSError as error:
                logger.warning("%s: old model versions cannot be deleted: %s", folder, error)
                return

    def _note_whole(self, digest: str) -> None:
        with contextlib.suppress(OSError):
            self._whole[digest] = _stamp(self._blob_path(digest))

    def _blob_path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ModelError(f"not a SHA-256 digest: {digest!r:.80}")
        return self._blobs / digest

    def _version_path(self, number: int) -> Path:
        return self._versions / f"{number:08d}{_SUFFIX}"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_atomically(path, content)
        except OSError as error:
            raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
