"""Published versions: signed, stored durably, and announced to whoever listens.

``blobs/`` holds contents named by their hash, ``versions/`` one small file a version, written
last: a version that is listed is whole. A restarted server serves the newest one again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedge.durable import write_atomically
from fedge.errors import ModelError
from fedge.manifest import Blob, ModelManifest, sign, verify
from fedge.protocol import PROTOCOL_VERSION
from server.export import ExportedModel

log = logging.getLogger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION_NAME = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True)
class PublishedVersion:
    """One version as it is served.

    Attributes:
        sequence: order of publication in this run folder.
        content: the manifest's bytes, which the signature covers.
    """

    sequence: int
    manifest: ModelManifest
    content: bytes
    signature: bytes


Listener = Callable[[PublishedVersion], None]


class Publisher:
    """Signs and keeps the versions of one run folder; safe across threads.

    Args:
        folder: made if missing.
        key: the release key.
        run_name: run that versions belong to; those of another run are not served.
        task: name of the task.
        keep_versions: newest versions kept.

    Raises:
        ModelError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, key: Ed25519PrivateKey, *, run_name: str, task: str, keep_versions: int
    ) -> None:
        self._blobs = folder / "blobs"
        self._versions = folder / "versions"
        self._key = key
        self._run_name = run_name
        self._task = task
        self._keep = keep_versions
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        try:
            for place in (self._blobs, self._versions):
                place.mkdir(parents=True, exist_ok=True)
            self._latest = self._newest_whole()
        except OSError as error:
            raise ModelError(f"cannot use registry folder {folder}: {error.strerror}") from error

    @property
    def latest(self) -> PublishedVersion | None:
        """The version that is served."""
        return self._latest

    def listen(self, listener: Listener) -> None:
        """Have a function called with each new version, in the publishing thread."""
        self._listeners.append(listener)

    def publish(self, round: int, model: ExportedModel) -> PublishedVersion:
        """Sign and store a version and announce it; one that is served already stays as it is.

        Raises:
            ModelError: it could not be stored; the one before stays served.
        """
        manifest = ModelManifest(
            protocol=PROTOCOL_VERSION,
            run_name=self._run_name,
            round=round,
            task=self._task,
            layout_json=model.layout.to_json(),
            weights=Blob.of(model.weights),
            template=Blob.of(model.template),
            plan=Blob.of(model.plan),
            self_test=model.self_test,
        )
        with self._lock:
            if self._latest is not None and self._latest.manifest == manifest:
                return self._latest
            try:
                for content in (model.weights, model.template, model.plan, model.self_test_content):
                    self._store_blob(content)
                version = self._store_version(manifest)
            except OSError as error:
                raise ModelError(
                    f"cannot store round {round} in {self._blobs.parent}: {error.strerror}; free "
                    "disk space or correct run_dir"
                ) from error
            self._latest = version
            self._tidy()
        for listener in self._listeners:
            listener(version)
        return version

    def open_blob(self, digest: str) -> BinaryIO:
        """Open a blob for reading; it stays readable when its version is removed meanwhile.

        Raises:
            FileNotFoundError: there is no such blob, or the digest is not one.
        """
        if not DIGEST.fullmatch(digest):
            raise FileNotFoundError(digest)
        return (self._blobs / digest).open("rb")

    def _store_blob(self, content: bytes) -> None:
        path = self._blobs / Blob.of(content).digest
        if not path.is_file() or path.read_bytes() != content:  # a damaged one is replaced
            write_atomically(path, content)

    def _store_version(self, manifest: ModelManifest) -> PublishedVersion:
        content = manifest.to_bytes()
        numbers = [number for number, _ in self._listed()]
        version = PublishedVersion(
            max(numbers, default=0) + 1, manifest, content, sign(content, self._key)
        )
        record = {"manifest": content.decode(), "signature": version.signature.hex()}
        path = self._versions / f"{version.sequence:08d}.json"
        write_atomically(path, json.dumps(record).encode())
        return version

    def _listed(self) -> list[tuple[int, Path]]:
        """Return (sequence, file) of every version, newest first."""
        found = []
        for path in self._versions.iterdir():
            match = _VERSION_NAME.fullmatch(path.name)
            if match:
                found.append((int(match[1]), path))
        return sorted(found, reverse=True)

    def _newest_whole(self) -> PublishedVersion | None:
        for sequence, path in self._listed():
            try:
                version = self._read(sequence, path)
                if version.manifest.run_name != self._run_name:
                    continue
                for blob in _blobs_of(version.manifest):
                    blob.check((self._blobs / blob.digest).read_bytes(), "blob")
                return version
            except (ModelError, OSError) as error:
                log.warning("published version %s is passed over: %s", path.name, error)
        return None

    def _read(self, sequence: int, path: Path) -> PublishedVersion:
        try:
            record = json.loads(path.read_bytes())
            content = record["manifest"].encode()
            signature = bytes.fromhex(record["signature"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"not a version file: {error}") from error
        manifest = verify(content, signature, self._key.public_key())
        return PublishedVersion(sequence, manifest, content, signature)

    def _tidy(self) -> None:
        """Remove versions beyond those kept, and blobs that no version needs."""
        try:
            listed = self._listed()
            needed: set[str] = set()
            for sequence, path in listed[: self._keep]:
                with contextlib.suppress(ModelError):  # damaged or of another key: never served
                    manifest = self._read(sequence, path).manifest
                    needed.update(blob.digest for blob in _blobs_of(manifest))
            for _, path in listed[self._keep :]:
                path.unlink(missing_ok=True)
            for path in self._blobs.iterdir():
                if path.name not in needed:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("old versions in %s stay for now: %s", self._versions, error)


def _blobs_of(manifest: ModelManifest) -> tuple[Blob, ...]:
    return (manifest.weights, manifest.template, manifest.plan, manifest.self_test.blob)
