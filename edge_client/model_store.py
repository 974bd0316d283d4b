"""Model versions on the device: verified before they are kept, verified again when loaded.

A version is a signed manifest and the blobs it names. Nothing reaches the disk before signature,
hashes, protocol and known answers were right; the pointer moves last, so that a crash at any
instant leaves the old version or the new. The version served is never the only one kept.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_client.inference import Engine, Version
from edge_client.version_choices import ChoicesFile
from edge_client.version_files import SignedManifest, VersionFiles
from edge_client.version_loader import Compose as Compose
from edge_client.version_loader import VersionLoader, version_of
from edge_client.version_loader import blobs_of as blobs_of
from edge_client.version_loader import load_bundled as load_bundled
from fedge.errors import ModelError
from fedge.manifest import Blob, ModelManifest, verify
from fedge.protocol import PROTOCOL_VERSION

logger = logging.getLogger(__name__)

Attempt = Callable[[str], object]
"""Is called with a version's id just before its file is given to the runtime."""


@dataclass(frozen=True)
class StoredVersion:
    """A version that is whole on disk.

    Attributes:
        number: its place in the order of installation on this device.
        id: SHA-256 (hex) of the manifest as it was signed.
    """

    number: int
    id: str
    manifest: ModelManifest

    @property
    def version(self) -> Version:
        """What answers say."""
        return version_of(self.manifest)


@dataclass(frozen=True)
class Prepared:
    """A version that may be used and is not on disk yet.

    Attributes:
        engine: passed its known answers; ready to serve.
        contents: checked blobs by digest, those already on disk left out.
    """

    id: str
    signed: SignedManifest
    manifest: ModelManifest
    engine: Engine
    contents: Mapping[str, tuple[Blob, bytes]]


class ModelStore:
    """The last few versions of one device; safe across threads, one daemon at a time.

    Args:
        root: folder of its own.
        public_key: the pinned release key. Without it nothing can be installed, and what is on
            disk is served as its hashes say.
        keep_versions: last versions kept, the current one among them.
        compose: puts the device's personal layers into the weights to serve; None has none.
    """

    def __init__(
        self,
        root: Path,
        public_key: Ed25519PublicKey | None,
        keep_versions: int = 3,
        *,
        compose: Compose | None = None,
    ) -> None:
        self._files = VersionFiles(root)
        self.choices = ChoicesFile(root)
        self._root = root
        self._public_key = public_key
        self._keep_versions = keep_versions
        self._loader = VersionLoader(compose)
        self._lock = threading.RLock()
        self._current: StoredVersion | None = None

    def read_blob(self, what: str, blob: Blob) -> bytes:
        """Return a blob's bytes, checked.

        Raises:
            ModelError: it is missing or damaged.
        """
        return self._files.read_blob(what, blob)

    def has_blob(self, digest: str) -> bool:
        """Tell whether a blob is here and whole, so that it need not be fetched."""
        return self._files.has_blob(digest)

    def verify(self, manifest_bytes: bytes, signature: bytes) -> ModelManifest:
        """Return a manifest that the release key signed, so that its blobs may be fetched.

        Raises:
            ModelError: the pinned key did not sign it, or it is of another protocol.
        """
        if self._public_key is None:
            raise ModelError("no release key is pinned: set registry.release_public_key")
        manifest = verify(manifest_bytes, signature, self._public_key)
        _check_protocol(manifest)
        return manifest

    def prepare(
        self,
        manifest_bytes: bytes,
        signature: bytes,
        blobs: Mapping[str, bytes],
        num_threads: int = 1,
        *,
        allow_older: bool = False,
    ) -> Prepared:
        """Verify, patch and self-test a version; nothing is written.

        Args:
            manifest_bytes: canonical JSON, as signed.
            signature: of exactly these bytes.
            blobs: by digest; those that `has_blob` may be left out.
            num_threads: of the engine.
            allow_older: take a round older than the current one of the same run.

        Raises:
            ModelError: it must not be used.
        """
        manifest = self.verify(manifest_bytes, signature)
        reason = self.choices.read().refused.get(version_id(manifest_bytes))
        if reason is not None:
            raise ModelError(f"round {manifest.round} was refused here: {reason}")
        given: dict[str, tuple[Blob, bytes]] = {}

        def read(what: str, blob: Blob) -> bytes:
            if blob.digest not in blobs:
                return self._files.read_blob(what, blob)
            content = blob.check(blobs[blob.digest], what)
            given[blob.digest] = (blob, content)
            return content

        with self._lock:
            current = self.current()
            if current is not None and not allow_older:
                _check_not_older(manifest, current.manifest)
            engine = self._loader.load(manifest, read, num_threads)
            for what, blob in blobs_of(manifest).items():
                if blob.digest in blobs and blob.digest not in given:  # the loader had it already
                    read(what, blob)
        signed = SignedManifest(manifest_bytes, signature)
        return Prepared(version_id(manifest_bytes), signed, manifest, engine, given)

    def commit(self, prepared: Prepared) -> StoredVersion:
        """Keep a prepared version and make it the current one.

        Raises:
            ModelError: it cannot be written; the version before stays current.
        """
        manifest = prepared.manifest
        with self._lock:
            for blob, content in prepared.contents.values():
                self._files.write_blob(blob, content)
            number = self._files.write_version(prepared.signed)
            self._files.point_to(number)
            self._current = StoredVersion(number, prepared.id, manifest)
            self._prune(self._current)
            logger.info("installed round %d of %s", manifest.round, manifest.run_name)
            return self._current

    def install(
        self,
        manifest_bytes: bytes,
        signature: bytes,
        blobs: Mapping[str, bytes],
        *,
        allow_older: bool = False,
    ) -> Version:
        """Prepare a version and commit it; one that is current stays as it is.

        Raises:
            ModelError: see `prepare` and `commit`.
        """
        with self._lock:
            current = self.current()
            if current is not None and current.id == version_id(manifest_bytes):
                self.verify(manifest_bytes, signature)
                return current.version
            prepared = self.prepare(manifest_bytes, signature, blobs, allow_older=allow_older)
            return self.commit(prepared).version

    def current(self) -> StoredVersion | None:
        """Return the version to serve: pinned, else pointed at, else the newest that is whole."""
        with self._lock:
            order = self._by_preference()
            if self._current is None or order[:1] != [self._current.number]:
                found = self._load_first(order, num_threads=1)
                self._current = found[0] if found else None
            return self._current

    def load_engine(self, num_threads: int, attempt: Attempt | None = None) -> Engine:
        """Return an engine of the version to serve, every byte of it checked again.

        Raises:
            ModelError: no version is whole; serve the one shipped (`load_bundled`).
        """
        with self._lock:
            found = self._load_first(self._by_preference(), num_threads, attempt)
            if found is None:
                self._current = None
                raise ModelError(f"{self._root} holds no model version that is whole (see the log)")
            self._current = found[0]
            return found[1]

    def load_number(self, number: int, num_threads: int) -> Engine:
        """Return an engine of one version, whichever is current.

        Raises:
            ModelError: it is not whole.
        """
        with self._lock:
            return self._load(number, num_threads)[1]

    def versions(self) -> list[StoredVersion]:
        """Return the versions whose manifest and blobs are whole, newest first."""
        found = []
        with self._lock:
            for number in self._files.numbers():
                try:
                    stored = self._read_version(number)
                except ModelError as error:
                    logger.warning("model version %d: %s", number, error)
                    continue
                named = blobs_of(stored.manifest).items()
                damaged = [what for what, blob in named if not self.has_blob(blob.digest)]
                if damaged:
                    logger.warning("model version %d: its %s is damaged", number, damaged[0])
                else:
                    found.append(stored)
        return found

    def _load_first(
        self, numbers: list[int], num_threads: int, attempt: Attempt | None = None
    ) -> tuple[StoredVersion, Engine] | None:
        for number in numbers:
            try:
                return self._load(number, num_threads, attempt)
            except ModelError as error:
                logger.warning("model version %d is not used: %s", number, error)
        return None

    def _load(
        self, number: int, num_threads: int, attempt: Attempt | None = None
    ) -> tuple[StoredVersion, Engine]:
        stored = self._read_version(number)
        if attempt is not None:
            attempt(stored.id)
        return stored, self._loader.load(stored.manifest, self._files.read_blob, num_threads)

    def _by_preference(self) -> list[int]:
        """Return the numbers of versions that are not refused, the one to serve first."""
        choices, pointed = self.choices.read(), self._files.pointed()
        ids = {}
        for number in self._files.numbers():
            try:
                ids[number] = version_id(self._files.read_version(number).manifest)
            except ModelError as error:
                logger.warning("model version %d is not used: %s", number, error)
        usable = [number for number, id in ids.items() if id not in choices.refused]
        return sorted(
            usable, key=lambda number: (ids[number] != choices.pinned, number != pointed, -number)
        )

    def _read_version(self, number: int) -> StoredVersion:
        signed = self._files.read_version(number)
        if self._public_key is not None:
            manifest = verify(signed.manifest, signed.signature, self._public_key)
        else:
            manifest = ModelManifest.from_bytes(signed.manifest)
        _check_protocol(manifest)
        return StoredVersion(number, version_id(signed.manifest), manifest)

    def _prune(self, current: StoredVersion) -> None:
        """Keep the current version, a pinned one and the last few whole ones, with their blobs."""
        choices = self.choices.read()
        usable = [stored for stored in self.versions() if stored.id not in choices.refused]
        usable.sort(
            key=lambda stored: (stored.number != current.number, stored.id != choices.pinned)
        )
        keep = usable[: self._keep_versions]
        blobs = [blob for stored in keep for blob in blobs_of(stored.manifest).values()]
        self._files.prune([stored.number for stored in keep], [blob.digest for blob in blobs])


def version_id(manifest_bytes: bytes) -> str:
    """Return the name of a signed manifest: the SHA-256 (hex) of its bytes."""
    return hashlib.sha256(manifest_bytes).hexdigest()


def _check_not_older(manifest: ModelManifest, current: ModelManifest) -> None:
    """Refuse to go back in a run: an old signed manifest may be replayed by anyone."""
    if manifest.run_name == current.run_name and manifest.round < current.round:
        raise ModelError(
            f"round {manifest.round} of {manifest.run_name!r} is older than round "
            f"{current.round}, which this device has; a run that starts over needs a new run_name"
        )


def _check_protocol(manifest: ModelManifest) -> None:
    if manifest.protocol != PROTOCOL_VERSION:
        raise ModelError(
            f"this version speaks protocol {manifest.protocol}, this device {PROTOCOL_VERSION}; "
            "upgrade the older of the two"
        )
